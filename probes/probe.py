"""A fitted probe: a calibrated linear read-out of one block's token-mean residual.

    presence = sigmoid(w · x + b)

w and b carry the standardisation and the probability calibration, so nothing else is needed
to use one. A probe is two files, `probe.json` and `probe.safetensors`; none is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import expit

from calibrate.errors import ArtefactError
from calibrate.files import write_together
from calibrate.model import borrowed
from probes.features import text_features

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

FACTS_FILE, WEIGHTS_FILE = "probe.json", "probe.safetensors"
FORMAT, VERSION = "steering-probe", 1


@dataclass(frozen=True)
class ProbeQuality:
    """How well a probe reads text it was not fitted on.

    auc_texts: area under the ROC curve on held-out written texts.
    p_value: of the written texts, out of fold and held out, being told apart by chance
        (one-sided Mann-Whitney test).
    auc_replies: the same on a model's own replies, primed against plain, out of fold; None
        where priming made no measurable difference.
    brier, calibration_error: mean squared error and expected calibration error (ten bins) of
        the out-of-fold probabilities, weighted as in the fit.
    n_examples: examples of each kind and label, such as {"written +": 29}.
    """

    auc_texts: float
    p_value: float
    auc_replies: float | None
    brier: float
    calibration_error: float
    n_examples: dict[str, int]


@dataclass(frozen=True, eq=False)
class Probe:
    """Scores texts for one concept.

    concept: its name. layer: 0-based block whose output is read.
    weights: float32 array of shape (hidden_size,); bias: float.
    threshold: probability from which a text counts as expressing the concept.
    model_id, tokenizer_sha256: the model that reads.
    """

    concept: str
    layer: int
    weights: np.ndarray
    bias: float
    threshold: float
    model_id: str
    tokenizer_sha256: str
    quality: ProbeQuality

    def score(self, texts: Sequence[str | tuple[str, str]], model: LoadedModel) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,).

        texts: texts alone, or (prompt, reply) pairs, of which the reply is read.
        model: the model the probe was fitted with, unsteered. An empty text scores 0.
        Raises: ArtefactError if it is another model.
        """
        if len(self.weights) != model.hidden_size or self.layer >= model.num_layers:
            raise ArtefactError(
                f"this probe reads {self.model_id} (hidden size {len(self.weights)}), got "
                f"{model.name} (hidden size {model.hidden_size}); load the model it was fitted with"
            )
        with borrowed(model):
            features = text_features(model, texts, [self.layer])[0]
        scores: np.ndarray = expit(features @ self.weights + self.bias)
        return np.where(features.any(axis=1), scores, 0.0)

    def files(self) -> dict[str, bytes]:
        """Return the contents of `probe.json` and `probe.safetensors`."""
        facts = asdict(self)
        weights = save({"weights": facts.pop("weights").astype(np.float32)})
        text = json.dumps({"format": FORMAT, "version": VERSION, **facts}, indent=2)
        return {FACTS_FILE: f"{text}\n".encode(), WEIGHTS_FILE: bytes(weights)}

    def save(self, directory: str | Path) -> None:
        """Write the probe into a directory, both files or neither.

        Raises: ArtefactError if it cannot be written.
        """
        write_together(directory, self.files(), last=FACTS_FILE)


def load(directory: str | Path) -> Probe:
    """Load a probe that `Probe.save` wrote.

    Raises: ArtefactError if it is missing, damaged, or of an unknown version.
    """
    folder = Path(directory)
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS_FILE)["weights"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ArtefactError(
            f"{folder} must hold a probe, but it cannot be read: {error}"
        ) from error
    found = (facts.pop("format", None), facts.pop("version", None))
    if found != (FORMAT, VERSION):
        raise ArtefactError(
            f"{folder} must hold a {FORMAT} of version {VERSION}, got {found[0]} {found[1]}; "
            "use the release that wrote it"
        )
    quality = ProbeQuality(**facts.pop("quality"))
    return Probe(weights=weights, quality=quality, **facts)
