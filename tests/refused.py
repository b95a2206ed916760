"""What is refused, as a table: every row is a test, and `docs/refusals.md` lists all of them.

A test module that has rows calls them REFUSED, and parametrises one test with `each(REFUSED)`:

    @each(REFUSED)
    def test_it_is_refused(row, tmp_path):
        row.check(tmp_path)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from calibrate.common.errors import CalibrateError, InputError


@dataclass(frozen=True)
class Refused:
    """One input that is refused.

    situation: what a user does, in a few words. says: the message, in which … stands for anything.
    act: does it, given an empty directory. error: what is raised.
    """

    situation: str
    says: str
    act: Callable[[Path], Any]
    error: type[CalibrateError] = InputError

    def check(self, folder: Path) -> None:
        """Do it, and compare the message: one line, the rule, the value and the way out."""
        with pytest.raises(self.error) as caught:
            self.act(folder)
        said = str(caught.value)
        pattern = ".*".join(re.escape(part) for part in self.says.split("…"))
        assert re.search(f"^{pattern}$", said), said
        assert len(said.splitlines()) == 1


def each(rows: Sequence[Refused]) -> Any:
    """Parametrise a test's `row` with these rows."""
    return pytest.mark.parametrize("row", rows, ids=[row.situation for row in rows])
