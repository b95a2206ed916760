"""The model card of a calibration: its evidence, its use, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader

from calibrate.artefact.config import SteeringConfig
from calibrate.common.marks import TOOL
from calibrate.deploy.export.exporter import to_be_given
from calibrate.deploy.export.place import commit_of, hub_id_of
from calibrate.deploy.export.svec import entered
from calibrate.deploy.finished import Calibration
from calibrate.engine.loading import DTYPES
from calibrate.judging.choice import NOBODY, SECOND
from calibrate.texts.guard import BUILT_IN
from calibrate.texts.harness import is_of_harness

OPTIONS = (  # settings that the command line has an option for, of the same name
    "ce_budget", "goal", "negatives", "positions", "pooling", "normalize", "min_gain", "trials",
    "precision", "long_run", "seed", "confidence", "max_fluency_drop", "max_guard_drop",
)  # fmt: skip
TAGS = ("activation-steering", "steering-vector", "representation-engineering", TOOL)


def card(
    result: Calibration, repository: str, exports: dict[str, str], pictures: Sequence[str]
) -> str:
    """The model card of a calibration: metadata, evidence, use, limits and reproduction.

    exports: where each is in the repository, by format.
    """
    config = result.config
    data = ModelCardData(
        base_model=hub_id_of(config),
        library_name=TOOL,
        tags=list(TAGS),
        pipeline_tag="text-generation",
    )
    return _environment().get_template("card.md").render(
        metadata=data.to_yaml(), config=config, evidence=result.evidence, repository=repository,
        exports=exports, pictures=pictures, given=to_be_given(config), entered=entered(config),
        command=command_of(config), needed=needed_by(config), tool=TOOL,
        commit=commit_of(config, hub_id_of(config)),
    )  # fmt: skip


def command_of(config: SteeringConfig) -> str:
    """The command that gives the same config again; DIR and FILE stand for what it cannot name."""
    settings, defaults = config.settings, type(config.settings)()
    sampling, rendering = settings.sampling, config.rendering
    layer = config.provenance.settings.get("layer", defaults.layer)
    recorded = {name: getattr(settings, name) for name in OPTIONS}
    recorded |= {"layer": ",".join(map(str, layer)) if isinstance(layer, list) else layer}
    asked: dict[str, Any] = {
        "model": config.model.id,
        "revision": commit_of(config, hub_id_of(config)),
        "dtype": config.model.dtype if config.model.dtype in DTYPES else None,
        "concept": config.concept.name,
        "start": config.provenance.start and "DIR",
        "beside": config.beside and "DIR",
        "corpus": "FILE" if config.measured.delta_ce.corpus == "file" else None,
        **{name: each for name, each in recorded.items() if each != getattr(defaults, name)},
        "reply_tokens": _unless(defaults.sampling.max_new_tokens, sampling.max_new_tokens),
        "chat_template_kwargs": json.dumps(rendering.kwargs)
        if rendering is not None and rendering.kwargs
        else None,
        **_readers(config),
        "guard": _guard(config),
    }
    words = ["calibrate"]
    for name, value in asked.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def needed_by(config: SteeringConfig) -> tuple[str, ...]:
    """What that command takes beside a model and texts, a sentence each."""
    lines = []
    if (start := config.provenance.start) is not None:
        lines.append(f"DIR is the earlier calibration that it began with, `{start.fingerprint}`.")
    if (beside := config.beside) is not None:
        lines.append(
            f"DIR is the earlier calibration of {beside.name} that is steered with it, "
            f"`{beside.fingerprint}`, and `--mix` its share, unless that was a half."
        )
    if config.measured.delta_ce.corpus == "file":
        lines.append("The FILE of `--corpus` is that which cross-entropy was measured on.")
    if _guard(config) == "FILE":
        lines.append("The FILE of `--guard` has the questions that are in `evidence.json`.")
    return tuple(lines)


def _unless(default: Any, value: Any) -> Any:
    return None if value == default else value


def _readers(config: SteeringConfig) -> dict[str, str | None]:
    """Who reads replies, as options; none where it is for the earlier calibration to say."""
    if config.provenance.start is not None:
        return {}
    final, *auditors = config.measured.judges
    auditor, scale = (auditors or [NOBODY])[0], config.measured.presence.scale
    usual = NOBODY if final == SECOND else SECOND
    return {
        "judge": final if scale is None else None,
        "teacher": None if scale is None else _teacher(scale.source, scale.teacher),
        "audit": _unless(usual, auditor),
    }


def _teacher(source: str, name: str | None) -> str | None:
    """The teacher of a probe as an option; None where readers have graded."""
    if source == "taught" and name is not None:
        return name.removeprefix("question:")
    return NOBODY if source == "written" else None


def _guard(config: SteeringConfig) -> str | None:
    """The guard as an option; None for the usual one, and where only a limit asks for it."""
    guard = config.measured.guard
    if guard is None:
        return NOBODY if config.provenance.start is None else None
    if guard.name == BUILT_IN:
        return None
    return guard.name if is_of_harness(guard.name) else "FILE"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("calibrate.pipelines", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
