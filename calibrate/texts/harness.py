"""The guard's questions from lm-evaluation-harness' tasks, put to the model as the harness does.

    lm-eval:arc_easy             a task, a group or a tag, or the path of a task's YAML file
    lm-eval:arc_easy,piqa:200    several, and at most so many questions of all of them together

The context and its continuations are the harness' own, few-shot examples and delimiter included, so
the share that is answered rightly is the harness' `acc`, without a chat template.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.common.errors import InputError, did_you_mean
from calibrate.texts.guard import MIN_ITEMS, Guard, GuardItem

PREFIX = "lm-eval:"
MOST = 500  # questions, if no number is given: a bound on the drop within about .03
SEED = 0  # of the choice among a task's questions, and of its few-shot examples
INSTALL = "pip install 'steering-calibrate[lm-eval]'"

Wanted = tuple[list[str], int]


def is_of_harness(guard: Any) -> bool:
    """Whether a guard is named as a task of the harness."""
    return isinstance(guard, str) and guard.startswith(PREFIX)


def check_harness(guard: str) -> Wanted:
    """Return the tasks that a guard names, and how many questions of them are wanted.

    Raises: InputError if no task is named, the number is too small, or the harness is missing.
    """
    names, _, number = guard.removeprefix(PREFIX).rpartition(":")
    if not (names and number.isdecimal()):
        names, number = guard.removeprefix(PREFIX), str(MOST)
    tasks = [name.strip() for name in names.split(",")]
    if not all(tasks):
        raise InputError(
            f"--guard {PREFIX} must be followed by a task's name, got {guard!r}; give one, such as "
            f"{PREFIX}arc_easy"
        )
    if int(number) < MIN_ITEMS:
        raise InputError(
            f"a guard must have at least {MIN_ITEMS} questions, got {number} in {guard!r}; ask for "
            "more"
        )
    if find_spec("lm_eval") is None:
        raise InputError(f"--guard {guard} needs lm-evaluation-harness; install it: {INSTALL}")
    return tasks, int(number)


def harness_guard(guard: str) -> Guard:
    """Read the questions that a guard names; a sample of all its tasks' where there are more.

    Raises: InputError as `check_harness` does, if a task is unknown, its questions cannot be had,
        or they are not answered by the likeliest of some continuations.
    """
    names, most = check_harness(guard)
    with _quiet():
        return Guard(_told(guard, names), _asked(guard, names, most))


def _told(guard: str, names: Sequence[str]) -> str:
    """A guard as it is called in an artefact, which names no folder of this machine."""
    for name in names:
        guard = guard.replace(name, Path(name).name) if Path(name).is_file() else guard
    return guard


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness' notes and datasets' bars off the terminal; errors still raise."""
    import datasets

    logger, hidden = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()


def _asked(guard: str, names: Sequence[str], most: int) -> tuple[GuardItem, ...]:
    """At most so many different questions, spread over the tasks."""
    tasks = _tasks(names)
    edges = np.cumsum([0, *(len(docs) for _, docs in tasks)])
    drawn = np.sort(np.random.default_rng(SEED).permutation(edges[-1])[:most])
    items: list[GuardItem] = []
    for (task, docs), (first, last) in zip(tasks, pairwise(edges), strict=True):
        chosen = drawn[(drawn >= first) & (drawn < last)] - first
        items += _items(task, [docs[int(place)] for place in chosen])
    different = tuple(dict.fromkeys(items))
    if len(different) < MIN_ITEMS:
        raise InputError(
            f"a guard must have at least {MIN_ITEMS} different questions, got {len(different)} in "
            f"{guard}; name another task beside it"
        )
    return different


def _tasks(names: Sequence[str]) -> list[tuple[Any, Any]]:
    """The harness' tasks, each with the questions it is evaluated on."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not all(Path(name).is_file() for name in names))
    found: dict[str, tuple[Any, Any]] = {}
    for name in names:
        if not Path(name).is_file() and name not in manager.all_tasks:
            raise InputError(
                f"--guard {PREFIX}NAME must name a task, group or tag of the harness, or a "
                f"task's YAML file, got {name!r}{did_you_mean(name, manager.all_tasks)}"
            )
        try:
            for key, task in manager.load(name)["tasks"].items():
                found[key] = (task, task.eval_docs)
        except Exception as error:  # the harness, datasets and a task's own code raise anything
            first, *_ = f"{error}".strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"the questions of {PREFIX}{name} must be on this machine or on the Hub, and "
                f"cannot be read: {first}; run the harness on it once, or give a file of your own"
            ) from error
    return list(found.values())


def _items(task: Any, docs: Sequence[Any]) -> Iterator[GuardItem]:
    """A task's questions as the harness puts them."""
    name, kind = task.task_name, task.OUTPUT_TYPE
    if kind not in ("multiple_choice", "loglikelihood") or getattr(task, "multiple_input", False):
        raise InputError(
            f"a guard's questions must be answered by the likeliest of what may follow them, and "
            f"{PREFIX}{name} is of another kind ({kind}); choose a task of multiple choices"
        )
    task.set_fewshot_seed(SEED)
    shots = task.config.num_fewshot or 0
    for number, doc in enumerate(docs):
        context = task.fewshot_context(doc, shots, gen_prefix=task.doc_to_prefix(doc))
        asked = task.construct_requests(doc=doc, ctx=context, metadata=(name, number, 1))
        if kind == "loglikelihood":
            question, answer = asked.args
            yield GuardItem(question, (answer,), 0, as_is=True)
            continue
        choices = task.doc_to_choice(doc)
        ways = tuple(each.args[1] for each in asked[: len(choices)])
        yield GuardItem(context, ways, _answer(task, doc, choices), as_is=True)


def _answer(task: Any, doc: Any, choices: Sequence[str]) -> int:
    """The place of the right choice."""
    target = task.doc_to_target(doc)
    if isinstance(target, list) and len(target) == 1:
        (target,) = target
    if isinstance(target, str) and target in choices:
        target = choices.index(target)
    if not isinstance(target, int) or not 0 <= target < len(choices):
        raise InputError(
            f"each question of a guard must have one right choice, and one of "
            f"{PREFIX}{task.task_name} has {target!r} of {len(choices)}; choose a task whose "
            "answers are published, one to a question"
        )
    return target
