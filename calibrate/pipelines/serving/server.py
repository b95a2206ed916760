"""A socket, and the app behind it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.pipelines.serving.app import make_app
from calibrate.pipelines.serving.catalogue import Catalogue, open_catalogue
from calibrate.pipelines.serving.scheduler import Scheduler

HERE = "127.0.0.1"
NAMES_OF_HERE = (HERE, "localhost")
SECONDS_TO_FINISH = 5  # of requests under way, once the server is to end


def serve(
    directories: Sequence[str | Path],
    *,
    model: str | None = None,
    host: str = HERE,
    port: int = 8000,
    most_running: int = 32,
    most_waiting: int = 64,
    progress: Progress = SILENT,
    ready: Callable[[Catalogue, str], None] = lambda _catalogue, _address: None,
    **options: Any,
) -> None:
    """Serve calibrations until interrupted.

    model, options: as for `open_catalogue`.
    host: address to listen on; other machines reach the server if it is not 127.0.0.1. port: 0 for
        a free one. most_running: replies in a batch. most_waiting: requests that may wait, beyond
        which they are refused with status 429. ready: told the address when it can be asked.
    Raises: InputError if it cannot listen there; what `open_catalogue` raises.
    """
    listening = _socket(host, port)
    try:
        catalogue = open_catalogue(directories, model, progress, **options)
        scheduler = Scheduler(catalogue.loaded, most_running, most_waiting)
        names = NAMES_OF_HERE if host == HERE else ("*",)
        config = uvicorn.Config(
            make_app(catalogue, scheduler, names),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
        )
        address = f"http://{host}:{listening.getsockname()[1]}"
        _Server(config, lambda: ready(catalogue, address)).run(sockets=[listening])
    finally:
        listening.close()


class _Server(uvicorn.Server):
    """Says when it can be asked."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _socket(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host and --port must be an address to listen on, got {host}:{port} ({error}); "
            "choose another --port"
        ) from error
