"""Progress in the terminal: a bar for the stage, a line for each trial, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

from calibrate.cli.console import is_utf, silence
from calibrate.common.progress import Progress, Unit
from calibrate.common.trial import Trial


class PatientConsole(Console):
    """A console whose pipe may be closed before all output is written."""

    def on_broken_pipe(self) -> None:
        """Drop the remaining output instead of ending the program."""
        silence(sys.stderr if self.stderr else sys.stdout)


@dataclass(frozen=True)
class _Stage:
    task: TaskID
    started: float
    counts_tokens: bool


class TerminalProgress(Progress):
    """Shows a calibration on a console; a context manager, so that the bar goes when it ends.

    Where the console is no terminal, each finished stage and trial leaves one plain line.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            SpinnerColumn("dots" if is_utf(sys.stderr) else "line"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stages: list[_Stage] = []  # nested: each began inside the one before
        self._expected: dict[str, int] = {}
        self._spent_tokens, self._spent_seconds = 0, 0.0

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars."""
        if not self._bars.disable:  # rich before 15 ends with an empty line even then
            self._bars.stop()

    def forecast(self, tokens: Mapping[str, int], seconds: float) -> None:
        """Print how much is ahead, and keep it for the time left."""
        self._expected = dict(tokens)
        self._console.print(
            f"[dim]about {sum(tokens.values()):,} token-forwards ahead, "
            f"{max(1, round(seconds / 60))} min[/]"
        )

    def to_ask(self, questions: int) -> None:
        """Say how often a judge will be asked."""
        self._console.print(f"[dim]and up to {questions:,} questions to a judge[/]")

    def began(self, stage: str, total: int | None = None, unit: Unit = "tokens") -> None:
        """Start the stage's bar."""
        task = self._bars.add_task(stage, total=total, left="")
        self._stages.append(_Stage(task, time.perf_counter(), unit == "tokens"))

    def advanced(self, amount: int) -> None:
        """Move the bar, and say how long the rest of the calibration will take."""
        if not self._stages:
            return
        if self._stages[-1].counts_tokens:
            self._spent_tokens += amount
        self._bars.update(self._stages[-1].task, advance=amount, left=self._time_left())

    def asked(self, done: int, total: int) -> None:
        """Say beside the bar how many questions are answered."""
        if self._stages:
            left = f"the judge has read {done:,} of {total:,}"
            self._bars.update(self._stages[-1].task, left=left)

    def ended(self, stage: str) -> None:
        """Replace the bar by a line."""
        if not self._stages:
            return
        ended = self._stages.pop()
        seconds = time.perf_counter() - ended.started
        if ended.counts_tokens:
            self._spent_seconds += seconds
            self._expected.pop(stage, None)
        self._bars.remove_task(ended.task)
        self._console.print(f"[green]✓[/] {stage} [dim]{seconds:.1f} s[/]")

    def tried(self, trial: Trial) -> None:
        """Print the trial."""
        presence = "over budget" if trial.presence is None else f"presence {trial.presence:.3f}"
        if trial.presence is not None and not trial.complete:
            presence += f", behind the best after {trial.n_prompts} prompts"
        self._console.print(
            f"  [dim]trial {trial.number + 1}[/]  {trial.site}  α {trial.strength:+.4g}  "
            f"ΔCE {trial.delta_ce:.4f}  {presence}"
        )

    def _time_left(self) -> str:
        current = self._stages[-1]
        seconds = self._spent_seconds + time.perf_counter() - current.started
        task = next(task for task in self._bars.tasks if task.id == current.task)
        if not current.counts_tokens or seconds < 5 or not self._expected:
            return ""
        ahead = sum(self._expected.values()) - min(task.completed, task.total or 0)
        minutes = ahead * seconds / max(self._spent_tokens, 1) / 60
        return f"about {max(1, round(minutes))} min left"
