"""Other serving stacks for a steered model, and what the same steering costs in them.

ΔCE in a stack is the KL of its steered from its own unsteered predictions, on the replies the
config was verified on; on a corpus file it is the rise of the cross-entropy of its tokens. A
quantised model, another engine or a folded bias may respond to α otherwise than the calibrated
model; this measures whether the budget still holds.

A stack that steers fewer blocks than it should, or none, costs less. So the KL in it also has to
reach the lower end of the interval that the calibrated model's own has on the same text. Quantised
stacks that steer rightly are near: with 4-bit weights it was 4 % larger (docs/exports.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from calibrate.artefact.config import SteeringConfig, load
from calibrate.artefact.evidence import Evidence
from calibrate.common.cost import Ledger
from calibrate.common.errors import InputError, VerificationFailed, did_you_mean
from calibrate.common.estimate import RatioEstimate
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy.checks import judged
from calibrate.deploy.corpora import budget_corpus
from calibrate.deploy.diagnosis import Check
from calibrate.deploy.export import export
from calibrate.deploy.export.adapter import adapted
from calibrate.deploy.export.control_vector import read_directions
from calibrate.deploy.verify import as_calibrated, gate_folder
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.embedded import embedded_gguf
from calibrate.models.llama_cpp import LlamaCpp
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.wheels import EMBEDDED

STACKS = {"llama.cpp": "gguf", "peft": "peft", "folded": "folded"}  # by name, the format exported

# Shares of the calibrated model's KL between which the least that will do is held: with few texts
# its interval reaches down to nothing, and with many a quantised stack would have to be exact.
LEAST = 0.5, 0.95

Logits = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Stack:
    """A way of serving the config: logits after every position, unsteered and steered."""

    name: str
    unsteered: Logits
    steered: Logits


def require_stack(name: str, gguf: str | Path | None = None) -> None:
    """Raise InputError for a stack there is not, or a GGUF that is missing or that none reads."""
    if name not in STACKS:
        raise InputError(
            f"--against must be one of {', '.join(STACKS)}, got {name!r}"
            f"{did_you_mean(name, STACKS)}"
        )
    if gguf is not None and name != "llama.cpp":
        raise InputError(
            f"--gguf must come with --against llama.cpp, got --against {name}; give that, or leave "
            "--gguf out"
        )
    if gguf is not None and not Path(gguf).is_file():
        raise InputError(f"--gguf must be an existing file, got {str(gguf)!r}")


@contextmanager
def serving(
    name: str,
    config: SteeringConfig,
    loaded: LoadedModel,
    longest: int,
    gguf: str | Path | None = None,
) -> Iterator[Stack]:
    """Export a config for a stack, and have the stack serve it inside the `with`.

    longest: tokens of the longest sequence that it will be given. gguf: the model's GGUF for
        llama.cpp (default: the file the config's model came from).
    Raises: InputError for a stack there is not, or a GGUF that is missing, that the stack does not
        read or of another shape than the config's model; ExportRefused as the export does.
    """
    require_stack(name, gguf)
    with tempfile.TemporaryDirectory() as folder, preserving_model_state(loaded):
        target = Path(folder) / "export"
        export(config, STACKS[name], target, loaded)
        if name == "llama.cpp":
            with _llama_cpp(config, target, longest, gguf) as stack:
                yield stack
        elif name == "peft":
            yield Stack(name, _logits_of(loaded), _adapted_logits(loaded, target))
        else:
            folded = load_model(str(target), device=str(loaded.device), dtype=config.model.dtype)
            yield Stack(name, _logits_of(loaded), _logits_of(folded))


def check_stack(
    directory: str | Path,
    loaded: LoadedModel,
    name: str,
    gguf: str | Path | None = None,
    progress: Progress = SILENT,
    corpus: str | Path | None = None,
) -> Check:
    """Measure ΔCE in another stack, on what `budget_corpus` gives for it, and judge it.

    It has to keep to the budget, and to be no less than the steering costs in the model itself.

    Raises: InputError as `serving` and `budget_corpus` do; ArtefactError if the directory holds no
        config.
    """
    folder = gate_folder(directory)
    config, evidence = load(folder), Evidence.load(folder)
    loaded = as_calibrated(config, loaded)
    with Ledger(loaded.meter, progress).stage(f"ΔCE in {name}"):
        with preserving_model_state(loaded):
            texts = budget_corpus(config, evidence, loaded, corpus)
            by_kl = replace(texts, self_sampled=True)  # which is of any text, and never negative
            least = _least_kl(config, loaded, by_kl)
        longest = max((len(sequence.ids) for sequence in texts.sequences), default=0)
        try:
            with serving(name, config, loaded, longest, gguf) as stack:
                rise = rise_in(stack, texts)
                found = rise if texts.self_sampled else rise_in(stack, by_kl)
        except VerificationFailed as failed:  # what was exported for it does not do what it should
            return Check(f"budget in {name}", False, str(failed))
    check = judged(f"budget in {name}", rise, config)
    if not check.passed or found.value >= least:
        return check
    return replace(
        check,
        passed=False,
        found=f"{check.found}, but the KL must be at least {least:.4f}, near what steering does in "
        f"{loaded.name} itself, got {found.value:.4f}: {name} steers fewer blocks, more weakly or "
        "not at all; look at what it loads, or calibrate the model that it serves",
    )


def _least_kl(config: SteeringConfig, loaded: LoadedModel, texts: Corpus) -> float:
    """The least KL on these texts of a stack that steers as the model itself is steered."""
    run = run_unsteered(loaded, texts, [config.site.first])
    here = delta_ce(loaded, run, config.site, config.intervention.strength)
    low, _ = here.interval(config.budget.confidence)
    least, most = (share * here.value for share in LEAST)
    return min(max(low, least), most)


def rise_in(stack: Stack, corpus: Corpus) -> RatioEstimate:
    """ΔCE in a stack over sequences, nats per token: by the KL where it sampled them itself."""
    sums, counts = [], []
    for sequence in corpus.sequences:
        scored = slice(sequence.start - 1, len(sequence.ids) - 1)
        before, after = (
            torch.log_softmax(torch.from_numpy(logits(sequence.ids)[scored]).double(), dim=-1)
            for logits in (stack.unsteered, stack.steered)
        )
        if corpus.self_sampled:
            rises = (before.exp() * (before - after)).sum(dim=-1)
        else:
            labels = torch.tensor(sequence.ids[sequence.start :])
            rises = (before - after)[torch.arange(len(labels)), labels]
        sums.append(float(rises.sum()))
        counts.append(float(sequence.n_scored))
    return RatioEstimate(np.array(sums), np.array(counts))


@contextmanager
def _llama_cpp(
    config: SteeringConfig, vector: Path, longest: int, gguf: str | Path | None
) -> Iterator[Stack]:
    directions, file = read_directions(vector), gguf or _gguf_of(config)
    with LlamaCpp(file, longest) as engine:
        _require_shape(engine, config, file)

        def steered(ids: Sequence[int]) -> np.ndarray:
            engine.steer(directions)
            return engine.logits(ids)

        def unsteered(ids: Sequence[int]) -> np.ndarray:
            engine.steer(None)
            return engine.logits(ids)

        yield Stack("llama.cpp", unsteered, steered)


def _require_shape(engine: LlamaCpp, config: SteeringConfig, gguf: str | Path) -> None:
    """Raise InputError if a GGUF has other blocks than the config's model."""
    model = config.model
    if (engine.num_layers, engine.hidden_size) != (model.num_layers, model.hidden_size):
        raise InputError(
            f"the GGUF must be of the config's model, {model.num_layers} blocks of size "
            f"{model.hidden_size}, got {engine.num_layers} blocks of size {engine.hidden_size} in "
            f"{gguf}; name another with --gguf FILE"
        )


def _gguf_of(config: SteeringConfig) -> Path:
    name = config.model.id
    if name in EMBEDDED:
        return embedded_gguf(name)
    if name.endswith(".gguf") and Path(name).is_file():
        return Path(name)
    raise InputError(
        f"llama.cpp needs {name} as a GGUF file; name it with --gguf FILE (llama.cpp's "
        "convert_hf_to_gguf.py makes one)"
    )


def _logits_of(loaded: LoadedModel) -> Logits:
    def logits(ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            tokens = torch.tensor([list(ids)], device=loaded.device)
            output = loaded.model(input_ids=tokens, use_cache=False).logits[0]
        return np.asarray(output.float().cpu().numpy())

    return logits


def _adapted_logits(loaded: LoadedModel, adapter: Path) -> Logits:
    plain = _logits_of(loaded)

    def logits(ids: Sequence[int]) -> np.ndarray:
        with adapted(loaded, adapter):
            return plain(ids)

    return logits
