"""Whether a checkpoint holds all the weights of its model, and no others.

transformers initialises missing weights at random, and drops those it has no place for. Here both
are errors, unless the model itself declares them unimportant, or what is left over belongs to parts
that text does not run through (a vision tower, heads for several tokens ahead).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from calibrate.common.errors import CalibrateWarning, ModelError

WRAPPERS = {
    "_orig_mod.": "torch.compile's; save model._orig_mod instead",
    "module.": "DataParallel's, DDP's or DeepSpeed's; save model.module instead",
    "_fsdp_wrapped_module.": "FSDP's; save its full state dict instead",
    "base_model.model.": "PEFT's; save model.merge_and_unload() instead",
}
ADAPTER = re.compile(r"\.(lora_|base_layer\.|ia3_|modules_to_save\.|original_module\.)")
# Buffers that older releases saved, and scales that only other engines use.
NO_WEIGHTS = re.compile(
    r"rotary_emb\.inv_freq$|(^|\.)(attn|attention|self_attention)\.(masked_)?bias$"
    r"|_scale$|(^|\.)position_ids$"
)
BLOCK = re.compile(r"\.(\d+)\.")

SHOWN = 3  # names of weights in a message


def require_whole(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint gave a model all its weights, and the model took all of them.

    info: what `from_pretrained(…, output_loading_info=True)` returns beside the model.
    Raises: ModelError that lists what is missing, left over or misshapen, and the likely cause.
    """
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    left = sorted(info["unexpected_keys"])
    wanted = _TextParts(model).want if left else None
    foreign = [key for key in left if wanted is not None and not wanted(key)]
    if missing or misshapen or len(foreign) < len(left):
        over = left if missing else [key for key in left if key not in foreign]
        raise ModelError(
            f"the weights of {name} must be those of its {type(model).__name__}, but "
            f"{_listed(missing, over, misshapen)}: {_cause(model, missing, over, misshapen)}"
        )
    unused = [key for key in foreign if not NO_WEIGHTS.search(key)]
    if unused:
        warnings.warn(
            f"{type(model).__name__} has no use for {named(unused)} of {name}, which text does not "
            "run through",
            CalibrateWarning,
            stacklevel=2,
        )


class _TextParts:
    """The modules that text runs through: those beside the embeddings, and the head."""

    def __init__(self, model: Any) -> None:
        self._paths = {path for path, _ in model.named_modules()}
        self._text = _path_of(model, model.get_input_embeddings()).rpartition(".")[0]
        self._head = _path_of(model, model.get_output_embeddings())
        config = model.config.get_text_config()
        first = getattr(config, "num_hidden_layers", 0)
        self._ahead = range(first, first + (getattr(config, "num_nextn_predict_layers", 0) or 0))

    def want(self, key: str) -> bool:
        """Whether a left-over weight belongs to one of them."""
        if NO_WEIGHTS.search(key) or any(int(i) in self._ahead for i in BLOCK.findall(key)):
            return False
        place = key
        while place not in self._paths:  # the whole model's path is ""
            place = place.rpartition(".")[0]
        beside = place.startswith(f"{self._text}.") if self._text else place != ""
        return beside or place == self._head != ""


def _path_of(model: Any, part: Any) -> str:
    return next((path for path, module in model.named_modules() if module is part), "")


def _listed(
    missing: Sequence[str], left: Sequence[str], misshapen: Sequence[tuple[str, Any, Any]]
) -> str:
    faults = []
    if missing:
        faults.append(f"{_count(missing)} missing ({named(missing)})")
    if left:
        faults.append(f"{_count(left)} left over ({named(left)})")
    if misshapen:
        shapes = [
            f"{key}: {tuple(there)} instead of {tuple(here)}" for key, there, here in misshapen
        ]
        faults.append(f"{_count(shapes)} misshapen ({named(shapes)})")
    return " and ".join(faults)


def _cause(
    model: Any, missing: Sequence[str], left: Sequence[str], misshapen: Sequence[Any]
) -> str:
    prefix = _wrapper_prefix(missing, left)
    if prefix is not None:
        whose = WRAPPERS.get(prefix, "a wrapper's; save the model inside it instead")
        return f"the names in the file begin with {prefix!r}, which is {whose}"
    if any(ADAPTER.search(key) for key in left):
        return "an adapter's weights are among the model's; save model.merge_and_unload() instead"
    if missing == [f"{_path_of(model, model.get_output_embeddings())}.weight"]:
        return (
            "it was saved without its unembedding, as AutoModel or a classifier is; save the "
            "AutoModelForCausalLM it belongs to"
        )
    if misshapen or left:
        return "correct its config.json, or fetch or save the checkpoint again"
    return "transformers would start them at random; fetch or save the checkpoint again"


def _wrapper_prefix(missing: Sequence[str], left: Sequence[str]) -> str | None:
    """The prefix of the weights' names in the file, if it is all that is wrong with them."""
    for key in left:
        for wanted in missing:
            if key.endswith(f".{wanted}"):
                prefix = key.removesuffix(wanted)
                known = [name for name in WRAPPERS if prefix.startswith(name)]
                return known[0] if known else prefix
    clean = next((name for name in WRAPPERS if left and left[0].startswith(name)), None)
    return clean if missing else None


def named(keys: Sequence[str]) -> str:
    """Name some, and count the rest."""
    more = f", … {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _count(keys: Sequence[Any]) -> str:
    return f"{len(keys)} {'is' if len(keys) == 1 else 'are'}"
