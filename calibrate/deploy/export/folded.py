"""A folded checkpoint: α·v in the bias of each steered block's last projection.

Any engine that serves the architecture with that bias serves it, with nothing to install. Some
architectures have the bias (GPT-2 and its kin), some take it by a flag of their config (Llama), and
some are Llama but for its flags and are relabelled as it (Qwen 2, Mistral without windows). Nothing
here is a table of models: whether a flag gives the bias is seen by trying, and the whole is checked
against the reference log-probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoModelForCausalLM

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ExportRefused
from calibrate.deploy.export.adapter import writer_biases
from calibrate.deploy.export.adapters import is_quantised, merged
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, unsteered
from calibrate.deploy.verify import as_calibrated
from calibrate.engine.loading import load_model
from calibrate.models.architecture import BIAS_FLAGS, LIKE_LLAMA, base_of
from calibrate.models.model import LoadedModel
from calibrate.models.quiet import quiet_transformers
from calibrate.models.settled_template import with_settled_template

OWN_CODE = "transformers_modules"  # the package in which transformers puts what a model brings

CARD = """---
{metadata}
---

# {model}, steered {verb} {concept}

This checkpoint is {model} with {biases} changed: {strength:+.6g}·v, a steering vector calibrated
by steering-calibrate, is added to the output of {where} at every position. On held-out text
it raises cross-entropy by {delta_ce:.4f} nat per token (bound {upper:.4f}, budget {limit:g}) and
moves presence of {concept} from {baseline:.3f} to {presence:.3f}. `steering.json` has everything
else. The licence is that of {model}.
"""


class Folded(EveryPosition):
    """Writes a checkpoint directory, with the config and a model card."""

    name = "folded"
    directory = True
    needs_model = True
    renders = True

    def subject(self, loaded: LoadedModel) -> LoadedModel:
        """The model, with the adapters that it carries merged into its weights.

        Raises: ExportRefused for weights that are not at hand as they are, or that only the model's
            own code can use.
        """
        if type(base_of(loaded.model)).__module__.startswith(OWN_CODE):
            raise ExportRefused(
                f"{loaded.name} runs code of its own, and the {self.name} format is for engines "
                "that have the stock architecture; export peft or a snippet"
            )
        if is_quantised(loaded.model):
            raise ExportRefused(
                f"{loaded.name} is quantised or offloaded, so that its weights cannot be copied "
                "exactly; load it in full precision, or export gguf or a snippet"
            )
        return merged(loaded)

    def check_model(self, config: SteeringConfig, loaded: LoadedModel) -> None:
        """Refuse a block without a projection that writes, or an architecture without its bias."""
        biased_config(loaded.model, writer_biases(config, loaded, self.name))

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the weights, the tokenizer, the config and the card.

        The chat template that is written renders as it did for the calibration, whatever the day.
        """
        assert loaded is not None
        biases, place = writer_biases(config, loaded, self.name), self.place(config, loaded)
        folded = _with_biases(loaded.model, biases)
        folded.config.steering = {
            "tool": "steering-calibrate",
            "modules": list(biases),
            "strength": config.intervention.strength,
            "layers": list(config.layers),
            "concept": config.concept.name,
            "base_model": place or config.model.id,
        }
        with quiet_transformers():
            folded.save_pretrained(path)
            _tokenizer(config, loaded).save_pretrained(path)
        (path / "README.md").write_text(_card(config, place), encoding="utf-8")
        for name, content in config.files().items():
            (path / name).write_bytes(content)

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """As any checkpoint."""
        return (
            f"AutoModelForCausalLM.from_pretrained({str(target)!r})",
            f"vllm serve {quote(str(target))}",
        )

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Load the directory as any checkpoint."""
        dtype = config.model.dtype
        yield unsteered(load_model(str(path), device=str(loaded.device), dtype=dtype))


def _tokenizer(config: SteeringConfig, loaded: LoadedModel) -> Any:
    """The model's tokenizer, its chat template given what it was for the calibration."""
    given = config.rendering
    if given is None or not (given.kwargs or given.date):
        return loaded.tokenizer
    return with_settled_template(loaded.tokenizer, as_calibrated(config, loaded).rendering)


def biased_config(model: Any, paths: Collection[str]) -> Any:
    """A config of the stock architecture under which the projections at `paths` have a bias.

    Raises: ExportRefused if there is none.
    """
    if _have_biases(model, paths):
        return copy.deepcopy(model.config)
    for candidate in _candidates(model.config):
        if _have_biases(_on_meta(candidate), paths):
            return candidate
    raise ExportRefused(
        f"the {Folded.name} format needs a bias at {', '.join(paths)}, but the stock "
        f"{model.config.model_type} architecture has none; export peft, gguf or a snippet"
    )


def _have_biases(model: Any, paths: Collection[str]) -> bool:
    return all(model.get_submodule(path).bias is not None for path in paths)


def _candidates(config: Any) -> Iterator[Any]:
    """The config with each flag that may give biases, and relabelled where that is exact."""
    for flag in BIAS_FLAGS:
        if getattr(config, flag, None) is False:
            candidate = copy.deepcopy(config)
            setattr(candidate, flag, True)
            yield candidate
    windows = {kind for kind in getattr(config, "layer_types", None) or () if "sliding" in kind}
    sliding = windows or (config.model_type == "mistral" and config.sliding_window is not None)
    if config.model_type in LIKE_LLAMA and not sliding:
        yield _as_llama(config)


def _as_llama(config: Any) -> Any:
    known = set(AutoConfig.for_model("llama").to_dict())
    facts = {name: value for name, value in config.to_dict().items() if name in known}
    for name in ("model_type", "architectures"):
        facts.pop(name, None)
    facts.update(attention_bias=config.model_type == "qwen2", mlp_bias=True)
    relabelled = AutoConfig.for_model("llama", **facts)
    relabelled.architectures = ["LlamaForCausalLM"]
    return relabelled


def _on_meta(config: Any) -> Any:
    """A model of a config without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _with_biases(model: Any, biases: Mapping[str, torch.Tensor]) -> Any:
    """A copy of the model whose projections have biases added, by path; other new ones are zero."""
    fresh = AutoModelForCausalLM.from_config(biased_config(model, biases), dtype=model.dtype)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for name, tensor in fresh.state_dict().items():
        if name not in weights and name.endswith(".bias"):
            weights[name] = torch.zeros_like(tensor)
    for path, bias in biases.items():
        name = f"{path}.bias"
        weights[name] = weights[name] + bias.to(weights[name])
    fresh.load_state_dict(weights)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.eval()


def _card(config: SteeringConfig, place: str | None) -> str:
    measured = config.measured
    return CARD.format(
        metadata=ModelCardData(base_model=place, tags=["steering"]).to_yaml(),
        model=config.model.id,
        verb=config.concept.direction,
        concept=config.concept.name,
        strength=config.intervention.strength,
        biases="one bias" if len(config.layers) == 1 else f"{len(config.layers)} biases",
        where=config.where,
        delta_ce=measured.delta_ce.value,
        upper=measured.delta_ce.upper,
        limit=config.budget.limit,
        baseline=measured.presence.baseline,
        presence=measured.presence.value,
    )
