"""calibrate serve: steered models over HTTP, and a page to try them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from calibrate.cli.console import say, say_json
from calibrate.cli.option_groups import HELD, options
from calibrate.cli.option_types import TEXT
from calibrate.cli.shared import Command, as_json_text, say_origin, working

if TYPE_CHECKING:
    from calibrate.pipelines.serving.catalogue import Catalogue


@click.command(cls=Command)
@click.argument("directories", type=TEXT, nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--host",
    type=TEXT,
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Replies that are written at once.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait; more are refused with status 429.",
)
@options("elsewhere", *HELD)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON when it is ready.")
def serve(
    directories: tuple[str, ...],
    host: str,
    port: int,
    batch: int,
    queue: int,
    as_json: bool,
    **loading: Any,
) -> None:
    """Serve calibrations of one model as OpenAI's clients speak it, with a page to try them on.

    DIR is a calibration's directory, or USER/NAME on the Hub. Requests take `strength` and
    `concept` beside the usual fields, and those of different strengths share a batch.
    """
    from calibrate.pipelines.serving.needed import require_serving

    require_serving()
    from calibrate.pipelines.serving.server import serve as serve_calibrations

    served = False
    with working(as_json) as progress:

        def ready(catalogue: Catalogue, address: str) -> None:
            nonlocal served
            served = True
            progress.close()
            for each in catalogue.calibrations:
                say_origin(each.config.origin)
            if as_json:
                say_json(as_json_text({"address": address, "models": catalogue.names}))
            else:
                say(f"{', '.join(catalogue.names)}")
                say(f"try them at {address}; OpenAI's clients at {address}/v1; Ctrl-C ends it")

        try:
            serve_calibrations(
                directories,
                host=host,
                port=port,
                most_running=batch,
                most_waiting=queue,
                progress=progress,
                ready=ready,
                **loading,
            )
        except KeyboardInterrupt:  # the way to end it, once it serves
            if not served:
                raise
