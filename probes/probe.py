"""A fitted probe: a calibrated linear read-out of one or several blocks' token-mean residuals.

    presence = sigmoid(Σ over blocks of w · x, + b)

w and b carry the standardisation and the probability calibration, so nothing else is needed
to use one. A probe is two files, `probe.json` and `probe.safetensors`; none is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import expit

from calibrate.errors import ArtefactError
from calibrate.estimate import Interval
from calibrate.files import write_together
from calibrate.marks import facts_in
from calibrate.model import borrowed
from probes.features import text_features
from probes.quality import Quality

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

FACTS_FILE, WEIGHTS_FILE = "probe.json", "probe.safetensors"
FORMAT, VERSION = "steering-probe", 3


@dataclass(frozen=True)
class ProbeQuality:
    """How well a probe reads text it was not fitted on.

    texts: on held-out written texts. replies: on the model's own replies, plain and made on
        purpose, among written texts that express the concept, out of fold.
    p_value: of the written texts, out of fold and held out, being told apart by chance
        (one-sided Mann-Whitney test).
    n_examples: examples of each kind and label, such as {"written +": 29}.
    """

    texts: Quality
    replies: Quality
    p_value: float
    n_examples: dict[str, int]


@dataclass(frozen=True, eq=False)
class Probe:
    """Scores texts for one concept.

    concept: its name. layers: 0-based blocks whose output is read, ascending.
    weights: float32 array of shape (n_layers, hidden_size); bias: float.
    threshold: probability from which a text counts as expressing the concept.
    model_id, tokenizer_sha256: the model that reads.
    """

    concept: str
    layers: tuple[int, ...]
    weights: np.ndarray
    bias: float
    threshold: float
    model_id: str
    tokenizer_sha256: str
    quality: ProbeQuality

    def score(self, texts: Sequence[str], model: LoadedModel) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,).

        model: the model the probe was fitted with, unsteered. An empty text scores 0.
        Raises: ArtefactError if it is another model.
        """
        if self.weights.shape[1] != model.hidden_size or max(self.layers) >= model.num_layers:
            raise ArtefactError(
                f"this probe reads {self.model_id} (hidden size {self.weights.shape[1]}), got "
                f"{model.name} (hidden size {model.hidden_size}); load the model it was fitted with"
            )
        with borrowed(model):
            features = text_features(model, texts, self.layers)
        log_odds = np.einsum("lth,lh->t", features, self.weights) + self.bias
        return np.where(features.any(axis=(0, 2)), expit(log_odds), 0.0)

    def on(self, model: LoadedModel) -> ProbeJudge:
        """Return the judge that is this probe, reading with a model."""
        return ProbeJudge(self, model)

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
        write_together(directory, self.files(), last=FACTS_FILE, ours=is_probe)


def is_probe(path: Path) -> bool:
    """Whether a file is one of a probe's two, as the facts in its directory show."""
    return facts_in(path.with_name(FACTS_FILE)).get("format") == FORMAT


def load(directory: str | Path) -> Probe:
    """Load a probe that `Probe.save` wrote.

    Raises: ArtefactError if it is missing, damaged, or of an unknown version.
    """
    folder = Path(directory)
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS_FILE)["weights"]
        facts = dict(facts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtefactError(
            f"{folder} must hold a probe, but it cannot be read: {error}"
        ) from error
    found = (facts.pop("format", None), facts.pop("version", None))
    if found != (FORMAT, VERSION):
        raise ArtefactError(
            f"{folder} must hold a {FORMAT} of version {VERSION}, got {found[0]} {found[1]}; "
            "use the release that wrote it"
        )
    try:
        layers, measured = tuple(facts.pop("layers")), facts.pop("quality")
        texts, replies = (_as_quality(measured.pop(name)) for name in ("texts", "replies"))
        quality = ProbeQuality(texts=texts, replies=replies, **measured)
        return Probe(layers=layers, weights=weights, quality=quality, **facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{folder / FACTS_FILE} is damaged: {error}") from error


@dataclass(frozen=True, eq=False)
class ProbeJudge:
    """A probe and the model it reads with, as a judge."""

    probe: Probe
    model: LoadedModel

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the probe's concept."""
        return self.probe.score(texts, self.model)


def _as_quality(facts: dict[str, Any]) -> Quality:
    n = facts.pop("n")
    return Quality(n=n, **{name: Interval(**one) for name, one in facts.items()})
