"""Chat with a steered model, opened from a calibration, a PEFT adapter or a folded checkpoint.

All three hold the config, so any strength can be chosen: what the weights add already is deducted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from calibrate.artefact.config import SteeringConfig, load
from calibrate.artefact.frontier import Frontier
from calibrate.artefact.hub import local_directory, named_repository
from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Sampling, Settings, finite_strength
from calibrate.deploy.export.adapter import adapted
from calibrate.deploy.verify import exported_as, open_model
from calibrate.engine.decoding import default_generation_config, end_ids
from calibrate.engine.generation import completed, require_room
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt
from calibrate.models.tokens import Prompt

HELP = "/strength X  /budget NATS  /off  /concept  /quit"


@dataclass(frozen=True, eq=False)
class SteeredModel:
    """A model, its config, and the strength its weights carry by themselves.

    frontier: what other budgets buy, if it was measured.
    """

    loaded: LoadedModel
    config: SteeringConfig
    built_in: float
    frontier: Frontier | None = None

    def at(self, strength: float | None = None) -> AbstractContextManager[None]:
        """Steer by a strength inside the `with`, in all; by the calibrated one if None."""
        wanted = self.config.intervention.strength if strength is None else strength
        missing = wanted - self.built_in
        return self.config.steer(self.loaded, missing) if missing else nullcontext()


@contextmanager
def open_steered(
    path: str | Path, model: str | None = None, progress: Progress = SILENT, **options: Any
) -> Iterator[SteeredModel]:
    """Open a calibration's directory, an adapter or a folded checkpoint inside the `with`.

    model, options: another place to load the (base) model from, and other arguments of
        `load_model`.
    Raises: InputError for what an adapter or a folded checkpoint cannot be loaded with;
        ArtefactError if there is no config in it; ModelError if the model cannot be loaded.
    """
    folder = local_directory(path)
    config = load(folder)
    strength = config.intervention.strength
    exported = None if named_repository(path) else exported_as(folder)
    if exported == "folded":
        _require_own(folder, model, options)
        folded = open_model(config, str(folder), progress=progress, **options)
        yield SteeredModel(folded, config, strength)
        return
    if exported == "peft" and options.get("tensor_parallel"):
        raise InputError(
            f"{folder} is an adapter, which PEFT puts on models that one process holds; leave "
            "--tensor-parallel out, or name the calibration's directory"
        )
    loaded = open_model(config, model, progress=progress, **options)
    if exported == "peft":
        with adapted(loaded, folder):
            yield SteeredModel(loaded, config, strength)
        return
    yield SteeredModel(loaded, config, 0.0, Frontier.load(folder, config.provenance.fingerprint))


def _require_own(folder: Path, model: str | None, options: Mapping[str, Any]) -> None:
    """Raise InputError for another model in place of a folded checkpoint, or another revision."""
    given = {"--model": model, "--revision": options.get("revision")}
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"{folder} is a folded checkpoint, the model itself, so that there is no {option} "
                f"to choose, got {value}; leave it out, or name the calibration's directory"
            )


@dataclass(eq=False)
class Chat:
    """A conversation with a steered model.

    strength: how strongly it is steered from now on.
    """

    steered: SteeredModel
    sampling: Sampling
    strength: float
    history: list[tuple[str, str]] = field(default_factory=list)

    def command(self, line: str) -> str:
        """Do what a line that begins with a slash says, and return what to tell the user.

        Raises: InputError for a command there is not.
        """
        word, _, rest = line.partition(" ")
        concept = self.steered.config.concept
        if word == "/strength":
            try:
                self.strength = finite_strength(float(rest))
            except ValueError as error:
                raise InputError(f"/strength takes a number, got {rest!r}") from error
        elif word == "/budget":
            return self._spend(rest)
        elif word == "/off":
            self.strength = 0.0
        elif word == "/concept":
            calibrated = self.steered.config.intervention.strength
            return f"{concept.name} ({concept.goal}d), calibrated at α = {calibrated:+.4g}"
        else:
            raise InputError(f"there is no {word}; there are {HELP}")
        return f"α = {self.strength:+.4g}"

    def _spend(self, typed: str) -> str:
        """Steer by what a budget was measured to allow; by the law where it was not."""
        try:
            budget = Settings(ce_budget=float(typed)).ce_budget
        except ValueError as error:
            raise InputError(f"/budget takes a number of nats per token, got {typed!r}") from error
        config, frontier = self.steered.config, self.steered.frontier
        points = [] if frontier is None else frontier.points
        known = {point.budget: (point.strength, point.upper, point.why_not) for point in points}
        own = config.intervention.strength, config.measured.delta_ce.upper, None
        known[config.budget.limit] = own
        if budget in known:
            self.strength, upper, why_not = known[budget]
            but = "" if why_not is None else f"; may not ship: {why_not}"
            return f"α = {self.strength:+.4g}, verified: ΔCE at most {upper:.3g} nat{but}"
        strength = config.laws.cross_entropy.invert(budget, config.settings.sign)
        if not math.isfinite(strength):
            plateau = config.laws.cross_entropy.plateau
            raise InputError(
                f"/budget takes less than the plateau of ΔCE, {plateau:.3g} nats, got {budget:g}"
            )
        self.strength = strength
        return f"α = {strength:+.4g} by the law of ΔCE, not measured"

    def reply(self, text: str, write: Callable[[str], None]) -> str:
        """Reply to a text, writing the words as they come, thought included; return the answer."""
        loaded, prompt = self.steered.loaded, self._prompt(text)
        tokens, ends = torch.tensor([prompt.ids], device=loaded.device), sorted(end_ids(loaded))
        with self.steered.at(self.strength), default_generation_config(loaded.model):
            out = loaded.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                streamer=_Writer(loaded.tokenizer, write),
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=self.sampling.temperature,
                    top_p=self.sampling.top_p,
                    top_k=0,
                    max_new_tokens=self.sampling.max_new_tokens,
                    eos_token_id=ends,
                    pad_token_id=loaded.tokenizer.eos_token_id,
                ),
            )
        reply = completed(loaded, prompt, 0, out[0, len(prompt.ids) :].tolist()).text
        self.history.append((text, reply))
        return reply

    def _prompt(self, text: str) -> Prompt:
        """The conversation so far, its oldest turns forgotten where it would not fit."""
        while self.history:
            with suppress(InputError):  # it leaves no room for a reply
                return self._encoded(text)
            self.history.pop(0)
        return self._encoded(text)

    def _encoded(self, text: str) -> Prompt:
        prompt = encode_prompt(self.steered.loaded, text, history=self.history)
        require_room(self.steered.loaded, prompt, self.sampling)
        return prompt


class _Writer(TextStreamer):  # type: ignore[misc]
    """Hands on the words of a reply as they come."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass it on."""
        self._write(text)
