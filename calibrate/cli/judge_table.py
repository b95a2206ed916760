"""How a judge reads, beside people, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = [("AUC, somewhat or more", _separation(quality.somewhat))]
    if quality.clearly is not None:
        rows.append(("AUC, clearly", _separation(quality.clearly)))
    rows += [
        ("Brier score", _interval(quality.brier)),
        ("calibration error", _interval(quality.calibration_error)),
        ("cost", f"{quality.seconds_per_text:.3g} s a text"),
    ]
    for label, value in rows:
        table.add_row(f"[dim]{label}[/]", value)
    return table


def _separation(found: Separation) -> str:
    judge = f"none: {found.why_not}" if found.auc is None else _interval(found.auc)
    if found.readers is None:
        return judge
    return f"{judge}; a second reader beside the first: {_interval(found.readers)}"


def _levels(levels: Sequence[Level]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "texts", "judge's mean", "readers' share", "difference"):
        table.add_column(f"[dim]{heading}[/]")
    for place, level in enumerate(levels):
        table.add_row(
            f"[bold]{escape(level.condition) or 'no condition'}[/]" if place else "[dim]all[/]",
            f"{level.n_texts}",
            _interval(level.judge),
            _interval(level.readers),
            _interval(level.difference, "+"),
        )
    return table


def _examples(title: str, misread: Sequence[Misread]) -> Iterator[RenderableType]:
    if not misread:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("judge", "grade", title):
        table.add_column(f"[dim]{heading}[/]")
    for one in misread:
        table.add_row(f"{one.probability:.2f}", f"{one.grade:g}", escape(_brief(one.text)))
    yield from ("", table)


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _interval(found: Interval, sign: str = "") -> str:
    value, low, high = (format(x, f"{sign}.3f") for x in (found.value, found.low, found.high))
    return f"[bold]{value}[/] ({low} to {high})"
