"""Make a judge that is asked a yes/no question about each reply, from its name.

    question           the steered model itself, unsteered
    question:MODEL     another model, as `load_model` takes it; a .gguf file and the default
                       teacher run in llama.cpp if it is installed, all others in transformers
    openai:MODEL       a model on a server that speaks the OpenAI interface

Answers are cached on this machine, except those of the steered model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibrate.common.errors import InputError, ModelError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.engine.loading import load_model, rendered_with
from calibrate.models.cache import is_settled, model_digest
from calibrate.models.embedded import embedded_gguf
from calibrate.models.llama_cpp import is_installed
from calibrate.models.model import LoadedModel
from calibrate.models.rendering import names_variable
from probes.address import check_address
from probes.asking import QUESTION, Asked, check_question
from probes.gguf_question import GgufQuestion
from probes.judges import Judge
from probes.openai_question import OpenAIQuestion
from probes.question import Question
from probes.verdicts import Remembered

ASKED = ("question", "openai")
THINKING = "enable_thinking"  # the variable by which templates let a model think first, or not
TEACHER = "qwen2.5-1.5b"  # the embedded model that judges, fastest in its own GGUF format


def is_asked(name: str) -> bool:
    """Whether a name is of a judge that is asked, other than the steered model itself."""
    kind, _, model = name.partition(":")
    return kind in ASKED and bool(model)


def check_asked(names: Sequence[str], settings: Settings) -> None:
    """Refuse names and settings of asked judges that would fail later.

    Raises: InputError.
    """
    if settings.judge_question is not None:
        check_question(settings.judge_question)
    for name in names:
        kind, colon, model = name.partition(":")
        if kind == "openai":
            if not model.strip():
                raise InputError(
                    "a judge openai must name a model of the server, as in openai:gpt-4o, "
                    f"got {name!r}"
                )
            check_address(settings.judge_url)
        elif kind == "question" and colon and not model.strip():
            raise InputError(
                f"a judge question: must name a model, as in question:{TEACHER}, got {name!r}; "
                "the steered model itself is asked by question alone"
            )
        elif kind == "question" and model.endswith(".gguf"):
            _require_file(model)


def asked_judge(
    name: str,
    load: Callable[[], LoadedModel],
    settings: Settings,
    progress: Progress = SILENT,
    **place: Any,
) -> Judge:
    """Return the judge `question[:MODEL]` or `openai:MODEL` names.

    load: gives the steered model. place: other arguments of `load_model` for another one that is
        loaded in transformers.
    Raises: InputError as `check_asked` does; ModelError if a model cannot be loaded.
    """
    check_asked([name], settings)
    kind, _, model = name.partition(":")
    question = settings.judge_question or QUESTION
    if not model:
        return Question(_unthinking(load()), question)
    if kind == "openai":
        address = check_address(settings.judge_url)
        return Remembered(OpenAIQuestion(model, address, question), progress)
    if is_installed() and (model == TEACHER or model.endswith(".gguf")):
        gguf = embedded_gguf(model, progress) if model == TEACHER else Path(model)
        return Remembered(GgufQuestion(gguf, question, progress=progress), progress)
    other = _unthinking(load_model(model, progress=progress, **place))
    if not is_settled(other):
        return Question(other, question)
    judge: Asked = Question(other, question, identity=f"transformers {model_digest(other)}")
    return Remembered(judge, progress)


def _unthinking(loaded: LoadedModel) -> LoadedModel:
    """The model, its prompts rendered so that its first word is the answer, if it has the choice.

    One that begins a thought by itself would otherwise be read where the thought begins.
    """
    if not names_variable(loaded.tokenizer, THINKING):
        return loaded
    return rendered_with(loaded, {**loaded.rendering.kwargs, THINKING: False}, None)


def _require_file(model: str) -> None:
    if not Path(model).is_file():
        raise ModelError(f"a .gguf model must be an existing file, got {model!r}")
