"""What tells a judge from another of the same name, for results that are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import CodeType
from typing import Any

from calibrate.judging.choice import JudgeChoice, is_known
from calibrate.models.wheels import EMBEDDED
from probes.address import served
from probes.judges import FunctionJudge, judge_function

END = 1 << 20  # bytes at either end of a model's file, by which it is told from another


def judge_digest(judge: JudgeChoice | None, url: str | None = None) -> str | None:
    """A hash of what the same name may not mean the next time; None where it always does.

    It is of the code of a function or an object, though not of what that calls; of the ends of a
    model's files; and of a server's address, which the environment names where `url` does not, and
    of what it says of the model.
    Raises: InputError if that server cannot be reached.
    """
    if isinstance(judge, str) and is_known(judge):
        kind, _, what = judge.partition(":")
        found = _served(what, url) if kind == "openai" else _held(what)
        return hashlib.sha256(repr(found).encode()).hexdigest() if found else None
    if isinstance(judge, str):
        judge = judge_function(judge)
    if isinstance(judge, FunctionJudge):
        judge = judge.function
    methods = (getattr(type(judge), name, None) for name in ("score", "__call__"))
    codes = (getattr(place, "__code__", None) for place in (judge, *methods))
    code = next((each for each in codes if each is not None), None)
    return None if code is None else hashlib.sha256(repr(_instructions(code)).encode()).hexdigest()


def _served(model: str, url: str | None) -> list[str]:
    """The address of a server, and what it says of a model; empty without an address."""
    address = url or os.environ.get("OPENAI_BASE_URL")
    return [address, served(address, model)] if address else []


def _held(model: str) -> list[tuple[str, int, str]]:
    """Name, size and ends of a model's files, the same on every machine; none if it has none."""
    if not model or model in EMBEDDED:
        return []
    path = Path(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, *_ends(file)) for file in files if file.is_file()]


def _ends(file: Path) -> tuple[int, str]:
    """The size of a file, and a hash of how it begins and ends: all of it may be gigabytes."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        begins = opened.read(END)
        opened.seek(max(size - END, 0))
        return size, hashlib.sha256(begins + opened.read()).hexdigest()


def _instructions(code: CodeType) -> list[Any]:
    """What code does, wherever it stands."""
    inner = [_instructions(each) for each in code.co_consts if isinstance(each, CodeType)]
    plain = [_in_order(each) for each in code.co_consts if not isinstance(each, CodeType)]
    return [code.co_code, code.co_names, code.co_varnames, plain, inner]


def _in_order(constant: Any) -> str:
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
