"""How a judge's readings compare with people's, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from calibrate.cli.rich_tables import headed, labelled
from calibrate.common.estimate import Interval
from calibrate.judging.validation import JudgeQuality, Level, Misread, Separation

SHOWN = 240  # characters of a text


def judge_summary(quality: JudgeQuality) -> RenderableType:
    """Return how well a judge ranks and how high it reads, and the texts it misreads most."""
    return Group(
        Text.from_markup(
            f"[bold]{escape(quality.judge)}[/] looking for [bold]{escape(quality.concept)}[/] in "
            f"{quality.n_texts} texts that readers graded ({quality.n_groups} prompts or groups); "
            "95% intervals"
        ),
        "",
        _facts(quality),
        "",
        _levels((quality.level, *quality.levels)),
        *_examples("judge says yes, readers no", quality.too_high),
        *_examples("judge says no, readers yes", quality.too_low),
    )


def _facts(quality: JudgeQuality) -> Table:
    rows = [("AUC, somewhat or more", _separation(quality.somewhat))]
    if quality.clearly is not None:
        rows.append(("AUC, clearly", _separation(quality.clearly)))
    rows += [
        ("Brier score", _interval(quality.brier)),
        ("calibration error", _interval(quality.calibration_error)),
        ("cost", f"{quality.seconds_per_text:.3g} s a text"),
    ]
    return labelled(rows)


def _separation(separation: Separation) -> str:
    auc, readers = separation.auc, separation.readers
    judge = f"none: {separation.why_not}" if auc is None else _interval(auc)
    if readers is None:
        return judge
    return f"{judge}; a second reader beside the first: {_interval(readers)}"


def _levels(levels: Sequence[Level]) -> Table:
    table = headed("", "texts", "judge's mean", "readers' share", "difference")
    for row, level in enumerate(levels):
        table.add_row(
            f"[bold]{escape(level.condition) or 'no condition'}[/]" if row else "[dim]all[/]",
            f"{level.n_texts}",
            _interval(level.judge),
            _interval(level.readers),
            _interval(level.difference, "+"),
        )
    return table


def _examples(title: str, misread: Sequence[Misread]) -> Iterator[RenderableType]:
    if not misread:
        return
    table = headed("judge", "grade", title)
    for text in misread:
        table.add_row(f"{text.probability:.2f}", f"{text.grade:g}", escape(_brief(text.text)))
    yield from ("", table)


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _interval(x: Interval, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.3f") for number in (x.value, x.low, x.high))
    return f"[bold]{value}[/] ({low} to {high})"
