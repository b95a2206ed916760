"""A fitted probe: a calibrated linear read-out of one or several blocks' token-mean residuals.

    P(a reader says yes) = sigmoid(slope · (Σ over blocks of w · x + b) + offset)

w and b include the standardisation of features and the scale that was fitted; slope and offset are
1 and 0 until a user's own grades correct them. A probe is saved as two files, `probe.json` and
`probe.safetensors`; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from calibrate.common.errors import ArtefactError, CalibrateWarning
from calibrate.common.estimate import Interval
from calibrate.common.files import write_together
from calibrate.common.marks import facts_in
from calibrate.models.model import LoadedModel, preserving_model_state
from probes.features import text_features
from probes.quality import Quality
from probes.scale import AS_FITTED, Scale, log_odds

FACTS_FILE, WEIGHTS_FILE = "probe.json", "probe.safetensors"
FORMAT, VERSION = "steering-probe", 4

CERTAIN = 1e-12  # probabilities are clipped this far from 0 and 1

Source = Literal["graded", "taught", "written"]


@dataclass(frozen=True)
class Learned:
    """What a probe learned from, and its quality on texts it was not fitted on.

    source: "graded", replies that readers graded and that come with the concept; "taught", the
        model's own replies, graded by a teacher; "written", texts of either label alone.
    teacher: its name, where there was one. n_texts: how many, such as {"readers": 116}.
    quality: out of fold, against readers' yes for "graded", against the teacher's for "taught";
        against the labels of held-out texts for "written".
    p_value: of held-out texts being told apart by chance, for "written".

    >>> probes.load("joy/probe").learned.source
    'written'
    """

    source: Source
    teacher: str | None
    n_texts: dict[str, int]
    quality: Quality
    p_value: float | None = None


@dataclass(frozen=True, eq=False)
class Probe:
    """Scores texts for one concept.

    concept: its name. layers: 0-based blocks whose output is read, ascending.
    weights: float32 array of shape (n_layers, hidden_size); bias: float.
    clearly: scale from the log-odds, as fitted, to a clear yes; None if unknown.
    model_id, tokenizer_sha256, tokenization_sha256: the model that reads; the last is None
        where it was not recorded.
    scale: how a user's grades correct the log-odds; weights and bias stay as fitted.

    >>> probe = probes.load("joy/probe")
    >>> bright, dull = probe.score(["sun laugh song dance", "rain sigh mud debt"], loaded)
    >>> bool(bright > dull)
    True
    """

    concept: str
    layers: tuple[int, ...]
    weights: np.ndarray
    bias: float
    clearly: Scale | None
    model_id: str
    tokenizer_sha256: str
    learned: Learned
    scale: Scale = AS_FITTED
    tokenization_sha256: str | None = None

    def score(self, texts: Sequence[str], model: LoadedModel) -> np.ndarray:
        """Return the probability that a reader says yes to each text, shape (n_texts,).

        model: the model the probe was fitted with, unsteered. An empty text scores 0.
        Raises: ArtefactError if it has another size, or its tokenizer splits texts otherwise.
        Warns with CalibrateWarning if it has another name, as after a fine-tune.
        """
        self._check(model)
        with preserving_model_state(model):
            features = text_features(model, texts, self.layers)
        fitted = np.einsum("lth,lh->t", features, self.weights).astype(float) + self.bias
        return np.where(features.any(axis=(0, 2)), self.scale(fitted), 0.0)

    def _check(self, model: LoadedModel) -> None:
        """Refuse or name a model that is not the one the probe was fitted with."""
        if self.weights.shape[1] != model.hidden_size or max(self.layers) >= model.num_layers:
            raise ArtefactError(
                f"this probe reads {self.model_id} (hidden size {self.weights.shape[1]}), got "
                f"{model.name} (hidden size {model.hidden_size}); load the model it was fitted with"
            )
        known = "tokenizer_sha256" if self.tokenization_sha256 is None else "tokenization_sha256"
        if getattr(model.identity, known) != getattr(self, known):
            raise ArtefactError(
                f"this probe reads the tokens of {self.model_id}, got {model.name}, whose "
                "tokenizer splits texts otherwise; load the model it was fitted with"
            )
        if model.name != self.model_id:
            warnings.warn(
                f"the probe was fitted with {self.model_id} and reads with {model.name}: where its "
                "yes begins may have moved",
                CalibrateWarning,
                stacklevel=3,
            )

    def clear(self, scores: np.ndarray) -> np.ndarray | None:
        """Return the probability of a clear yes for texts of these scores; None if not known."""
        if self.clearly is None:
            return None
        fitted = self.scale.inverse(log_odds(scores, CERTAIN))  # 0 is the score of an empty text
        return np.where(scores > 0, self.clearly(fitted), 0.0)

    @property
    def as_fitted(self) -> Probe:
        """The probe before a user's grades corrected it."""
        return self.rescaled(AS_FITTED)

    def rescaled(self, scale: Scale) -> Probe:
        """Return the probe as it was fitted, corrected by a user's grades."""
        return self if scale == self.scale else replace(self, scale=scale)

    def on(self, model: LoadedModel) -> ProbeJudge:
        """Return this probe as a judge that reads with a model."""
        return ProbeJudge(self, model)

    def files(self) -> dict[str, bytes]:
        """Return the contents of `probe.json` and `probe.safetensors`."""
        facts = asdict(self)
        weights = save({"weights": facts.pop("weights")})
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

    >>> probe = probes.load("joy/probe")
    >>> probe.score(["sun laugh song dance"], loaded).shape
    (1,)
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
    name, version = facts.pop("format", None), facts.pop("version", None)
    if (name, version) != (FORMAT, VERSION):
        raise ArtefactError(
            f"{folder} must hold a {FORMAT} of version {VERSION}, got {name} {version}; "
            "calibrate again, or use the release that wrote it"
        )
    try:
        layers, clearly, learned = (facts.pop(name) for name in ("layers", "clearly", "learned"))
        if weights.ndim != 2 or len(weights) != len(layers):
            raise ArtefactError(
                f"{folder} must hold a row of weights for each block that is read, got "
                f"{len(layers)} blocks and weights of shape {weights.shape}; calibrate again, or "
                "fetch both files again"
            )
        scale = Scale(**facts.pop("scale"))
        return Probe(
            layers=tuple(layers),
            weights=weights,
            clearly=None if clearly is None else Scale(**clearly),
            learned=Learned(**{**learned, "quality": _as_quality(learned["quality"])}),
            scale=scale,
            **facts,
        )
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

    def clear(self, scores: np.ndarray) -> np.ndarray | None:
        """Return the probability that texts of these scores clearly do; None if not known."""
        return self.probe.clear(scores)


def _as_quality(facts: dict[str, Any]) -> Quality:
    facts = dict(facts)
    n = facts.pop("n")
    return Quality(n=n, **{name: Interval(**interval) for name, interval in facts.items()})
