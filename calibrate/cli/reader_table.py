"""What people who read the replies say, as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from calibrate.artefact.measured_sections import ReadersSection, ShareSection
from calibrate.cli.rich_tables import labelled
from calibrate.common.estimate import Interval


def readers_table(readers: ReadersSection) -> Table:
    """Return presence by people's grades, and how the judge compares."""
    return labelled(_rows(readers))


def readers_line(readers: ReadersSection) -> str:
    """Return presence by people's grades in a line."""
    return (
        f"{_share(readers.presence)}; {', '.join(map(escape, readers.graders))} graded "
        f"{readers.n_replies} replies to {readers.n_prompts} prompts, blind"
    )


def _rows(readers: ReadersSection) -> Iterator[tuple[str, str]]:
    yield "graded by", f"{', '.join(map(escape, readers.graders))}"
    yield (
        "replies",
        f"{readers.n_replies} to {readers.n_prompts} prompts; the judge alone read those to "
        f"{readers.n_judged} more",
    )
    yield "presence (1 or 2)", _share(readers.presence)
    yield "clearly (2)", _share(readers.clearly)
    yield "judge's AUC", _auc(readers.judge_auc)
    yield "judge's level", f"{_interval(readers.judge_level, '+.2f')} above that of the grades"
    for pair in readers.agreement:
        first, second = map(escape, pair.graders)
        kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.2f}"
        yield (
            f"{first}, {second}",
            f"say the same of {pair.alike:.0%} of {pair.n_replies} replies, Cohen's kappa {kappa}",
        )
    if readers.scale is not None:
        scale = readers.scale
        yield (
            "the probe's scale",
            f"{scale.method}: log-odds × {scale.slope:.3g} {scale.offset:+.3g}; log loss of "
            f"left-out grades {scale.log_loss:.3f}, uncorrected {scale.log_loss_before:.3f}",
        )


def _share(share: ShareSection) -> str:
    return (
        f"[bold]{_interval(share.after)}[/] against {_interval(share.before)} unsteered, a change "
        f"of {_interval(share.change, '+.2f')}"
    )


def _auc(auc: Interval | None) -> str:
    if auc is None:
        return "undefined: the grades are all alike"
    return f"{_interval(auc)}: how often it ranks a yes above a no"


def _interval(x: Interval, form: str = ".2f") -> str:
    return f"{x.value:{form}} ({x.low:{form}} to {x.high:{form}})"
