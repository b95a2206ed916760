"""What a sweep is asked for: models × concepts × budgets × blocks, one cell each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from calibrate.common.errors import InputError, did_you_mean
from calibrate.common.layout import stem
from calibrate.common.marks import sha256_of
from calibrate.judging.choice import AUTO, NOBODY
from calibrate.judging.digest import judge_digest
from calibrate.models.wheels import EMBEDDED
from calibrate.pipelines.options import checked_options
from calibrate.pipelines.sweep.loading import SAME_RESULTS, split_loading
from calibrate.texts.concept import built_in_concepts
from calibrate.texts.harness import is_of_harness

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

GIVEN = ("model", "concept", "out", "progress", "tokenizer", "storage", "study")
LISTS = ("models", "concepts", "ce-budgets", "layers")
FILES = ("prompts", "corpus", "start", "beside")  # options that name a file or a directory


@dataclass(frozen=True)
class Cell:
    """One calibration: of a model, for a concept, with some options, under a name of its own.

    loading: options of `load_model`. options: of `calibrate.calibrate`.
    """

    name: str
    model: str
    concept: str
    options: tuple[tuple[str, Any], ...] = ()
    loading: tuple[tuple[str, Any], ...] = ()

    @property
    def held(self) -> str:
        """What a worker holds that runs it: the model, as it is loaded."""
        return json.dumps([self.model, sorted(self.loading)])

    @property
    def key(self) -> str:
        """Hash of everything that was asked, and of what the files named by it hold.

        Of a model and of directories it is when their files were written; of judges that are
        functions, their code. What has a name of its own here, such as a built-in concept, is no
        file, whatever lies in the working directory.
        """
        written = [] if self.model in EMBEDDED else _written(Path(self.model))
        asked = [self.model, written, self.concept, sorted(self.options)]
        if loading := [each for each in sorted(self.loading) if each[0] not in SAME_RESULTS]:
            asked.append(loading)
        held = [_held(path) for path in _paths(self)]
        code = [_code(value) for name, value in self.options if name in ("judge", "audit")]
        return hashlib.sha256(json.dumps([*asked, held, code]).encode()).hexdigest()


def cells_of(
    models: Sequence[str],
    concepts: Sequence[str],
    budgets: Sequence[float] = (),
    layers: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[Cell, ...]:
    """Every combination, model by model.

    budgets, layers: none for the options' own. options: of `calibrate.calibrate` and of
        `load_model`, for all.
    Raises: InputError for an option that does not exist, or a value out of range.

    >>> from calibrate.pipelines.sweep.cells import cells_of
    >>> [cell.name for cell in cells_of(["smollm2"], ["joy", "evil"], [0.05, 0.1])][:2]
    ['joy-smollm2-ce_budget-0.05', 'joy-smollm2-ce_budget-0.1']
    """
    if not models or not concepts:
        raise InputError("a sweep needs at least one model and one concept")
    loading, shared = split_loading(options or {})
    _require_plain(loading)
    found = []
    varied = {
        name: values for name, values in (("ce_budget", budgets), ("layer", layers)) if values
    }
    for model, concept, *chosen in product(models, concepts, *varied.values()):
        own = dict(zip(varied, chosen, strict=True))
        asked = checked_options({**shared, **own}, "a sweep", GIVEN)
        _require_plain(asked)
        several = [f"{name}-{value}" for name, value in own.items() if len(varied[name]) > 1]
        name = "-".join([stem(concept), stem(model), *several])
        given = (tuple(sorted(each.items())) for each in (asked, loading))
        found.append(Cell(_safe(name), model, concept, *given))
    return distinct(found)


def _require_plain(options: Mapping[str, Any]) -> None:
    """Raise InputError for values that cannot be handed to another process as they are."""
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(
                f"a sweep's options must be numbers, words or lists of them, got {name}={value!r}"
            ) from None


def distinct(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells, each once.

    Raises: InputError if two of one name ask for different things.
    """
    by_name: dict[str, Cell] = {}
    for cell in cells:
        if (first := by_name.setdefault(cell.name, cell)) != cell:
            raise InputError(
                f"cells must have names of their own, and {cell.name!r} is two: "
                f"{_difference(first, cell)}"
            )
    return tuple(by_name.values())


def _difference(one: Cell, other: Cell) -> str:
    """In what two cells of one name differ, and the way out."""
    for this, that in ((one.model, other.model), (one.concept, other.concept)):
        if this != that:
            return f"of {this} and of {that}; rename a directory or a file"
    options = dict(one.options), dict(other.options)
    names = sorted(
        name
        for name in {**options[0], **options[1]}
        if options[0].get(name) != options[1].get(name)
    )
    said = (", ".join(f"{name}={each.get(name)}" for name in names) for each in options)
    return (
        f"with {' and with '.join(said)}; name all budgets and layers in one table, and sweep "
        "other options to another --out"
    )


def next_cell(left: Sequence[Cell], held: str, holding: Mapping[str, int]) -> int:
    """The place of the cell that a worker takes next: of the model it holds, if any is left.

    Else of a model that fewest others hold, so that each is loaded by few.
    held: what the worker holds, as `Cell.held` has it. holding: how many workers hold each.
    """
    mine = [place for place, cell in enumerate(left) if cell.held == held]
    return mine[0] if mine else min(range(len(left)), key=lambda i: holding.get(left[i].held, 0))


def read_plan(path: Path) -> tuple[Cell, ...]:
    """Cells from a TOML file of tables [[sweep]], each with lists and options of its own.

    Raises: InputError for what is no such file.
    """
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} must be a TOML file: {error}") from error
    tables = facts.get("sweep")
    if not isinstance(tables, list) or set(facts) != {"sweep"}:
        raise InputError(
            f"{path} must hold tables [[sweep]] with models and concepts, and nothing else"
        )
    return distinct([cell for table in tables for cell in _cells_in(path, table)])


def _cells_in(path: Path, table: Mapping[str, Any]) -> tuple[Cell, ...]:
    lists = {name: table.get(name, []) for name in LISTS}
    for name, values in lists.items():
        if not isinstance(values, list):
            raise InputError(f"{path}: {name} must be a list, got {values!r}")
    for name in table:
        if f"{name}s" in LISTS:
            raise InputError(f"{path}: there is no {name}{did_you_mean(name, LISTS)}")
    rest = {name.replace("-", "_"): value for name, value in table.items() if name not in LISTS}
    models, concepts, budgets, layers = lists.values()
    return cells_of(models, concepts, budgets, layers, rest)


def _written(model: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a model's files; none where it is no directory or file."""
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    found = [(path.name, path.stat()) for path in files if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _paths(cell: Cell) -> list[str]:
    """What of a cell may name a file or a directory; no word that means something else."""
    found = [] if cell.concept in built_in_concepts() else [cell.concept]
    for name, value in sorted(cell.options):
        if isinstance(value, str) and value not in (AUTO, NOBODY):
            kind, _, rest = value.partition(":")
            if name in FILES or (name == "teacher" and kind != "openai"):
                found.append(value)
            elif name in ("judge", "audit") and kind in ("question", "embedding"):
                found.append(rest)
            elif name == "guard":
                tasks = re.split("[:,]", rest) if is_of_harness(value) else [value]
                found += [task for task in tasks if os.path.isfile(task)]
    return [path for path in found if path not in EMBEDDED]


def _held(name: str) -> Any:
    """What the file or the directory of a name holds; nothing where there is none."""
    with suppress(OSError, ValueError):  # no name of a path
        path = Path(name)
        if path.is_file() and path.suffix != ".gguf":
            return sha256_of(path)
        if name and path.exists():
            return _written(path)
    return None


def _code(judge: str | None) -> str | None:
    """A hash of what a judge is beside its name, where there is one and it is to be found here."""
    with suppress(InputError):
        return judge_digest(judge)
    return None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
