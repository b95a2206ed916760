"""The points behind the pages of docs, as they are kept."""

from __future__ import annotations

import runpy
from pathlib import Path

RECORDS = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "records.py"))


def test_every_record_is_a_line_and_floats_have_six_digits(tmp_path):
    path = tmp_path / "points.json"
    cells = [{"layer": 4, "rise": 0.123456789}, {"layer": 9, "rise": 1e-9 / 3}]
    facts = {"tokens": 123456789, "named": (1, "“x”"), "cells": cells}
    written = RECORDS["write_records"](path, facts)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "{",
        '"tokens":123456789,',
        '"named":[1,"“x”"],',
        '"cells":[',
        '{"layer":4,"rise":0.123457},',
        '{"layer":9,"rise":3.33333e-10}',
        "]",
        "}",
    ]
    assert written == RECORDS["read_records"](path)
    assert RECORDS["write_records"](path, written) == written


def test_nothing_is_kept_at_first(tmp_path):
    assert RECORDS["read_records"](tmp_path / "absent.json") == {}
