"""A blind grading session: one reply at a time, one key each, saved as soon as it is pressed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from calibrate.artefact.grades import Grades
from calibrate.deploy.grading.blind import BlindReply

WIDTH = 88  # columns; longer lines are hard to read
KEYS = "[bold]0[/] not  [bold]1[/] somewhat  [bold]2[/] clearly    [dim]u undo  s skip  q stop[/]"
END_OF_INPUT = "\x04"

Change = Callable[[Grades], Grades]


class Session:
    """One grader's session over some replies.

    keep: applies a change to the grades on disk, writes them, and returns them.
    """

    def __init__(
        self,
        console: Console,
        rubric: str,
        replies: Sequence[BlindReply],
        grader: str,
        keep: Callable[[Change], Grades],
    ) -> None:
        self._console = console
        self._rubric = rubric
        self._replies = replies
        self._grader = grader
        self._keep = keep

    def run(self, grades: Grades) -> Grades:
        """Show what is left to read until all is read, or the grader stops."""
        while (reply := self._next(grades)) is not None:
            self._show(reply, grades)
            key = _key()
            if key in ("q", END_OF_INPUT):
                break
            change = self._change(key, reply.id)
            if change is not None:
                grades = self._keep(change)
        return grades

    def left(self, grades: Grades) -> int:
        """How many replies are neither graded nor skipped."""
        return len(self._open(grades))

    def _next(self, grades: Grades) -> BlindReply | None:
        return next(iter(self._open(grades)), None)

    def _open(self, grades: Grades) -> list[BlindReply]:
        seen = grades.of(self._grader)
        return [reply for reply in self._replies if reply.id not in seen]

    def _change(self, key: str, reply: str) -> Change | None:
        """What a key does to the grades; None for an unknown key."""
        if key == "u":
            return lambda grades: grades.without_last(self._grader)
        if key == "s":
            return lambda grades: grades.with_grade(self._grader, reply, None)
        if key in ("0", "1", "2"):
            return lambda grades: grades.with_grade(self._grader, reply, int(key))
        return None

    def _show(self, reply: BlindReply, grades: Grades) -> None:
        number = len(self._replies) - self.left(grades) + 1
        width = min(WIDTH, self._console.width)
        self._console.clear()
        self._console.print(
            Group(
                Text.from_markup(f"[dim]reply {number} of {len(self._replies)}[/]"),
                Text(self._rubric, style="cyan"),
                "",
                Text.from_markup("[dim]prompt[/]"),
                Padding(Text(reply.prompt), (0, 0, 1, 2)),
                Text.from_markup("[dim]reply[/]"),
                Padding(Text(reply.text, style="bold"), (0, 0, 1, 2)),
                Text.from_markup(KEYS),
            ),
            width=width,
        )


def is_terminal() -> bool:
    """Whether keys can be read one by one, and somebody sees what is shown."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _key() -> str:
    try:
        return click.getchar().lower()
    except EOFError:
        return END_OF_INPUT
