"""Steering vectors: the raw difference of means of the residual stream, at every block.

    v = mean over positive texts of the pooled residual - the same over negative texts

Pooled is the mean over a text's tokens, attention sinks left out, or its last token's residual
(arXiv:2602.02712, section 2; Rimsky et al., arXiv:2312.06681, for the last token).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save
from torch import nn

from calibrate.cache import Form, recalled
from calibrate.concept import Text, Texts
from calibrate.errors import ConceptError
from calibrate.model import borrowed
from calibrate.rendering import encode_reply, encode_text
from calibrate.replies import random_negatives
from calibrate.residual import (
    Pooling,
    Positions,
    Push,
    add_everywhere,
    add_last,
    edited,
    pooled_residuals,
    retraced,
)
from calibrate.settings import Settings
from calibrate.tokens import TokenSequence

if TYPE_CHECKING:
    from calibrate.model import LoadedModel


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction to add to the residual stream after one block.

    values: float32 CPU tensor of shape (hidden_size,).
    layer: 0-based block whose output is steered.
    residual_norm: median ‖h‖ over the text tokens v was made from, at that block.
    n_sinks: text tokens left out as attention sinks.
    """

    values: torch.Tensor
    layer: int
    residual_norm: float
    n_sinks: int = 0

    @property
    def norm(self) -> float:
        """‖v‖."""
        return float(self.values.norm())

    def relative(self, strength: float) -> float:
        """α‖v‖ / median ‖h‖, which can be compared across blocks and models."""
        return strength * self.norm / self.residual_norm

    def random_like(self, seed: int) -> SteeringVector:
        """Return a vector of the same norm at the same block, in a random direction."""
        noise = torch.randn(self.values.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, values=noise * (self.norm / noise.norm()))

    def push(self, strength: float, positions: Positions = "all") -> Push:
        """What adds `strength · v` after this vector's block to replies that are generated."""
        return Push(strength * self.values, self.layer, positions)

    @contextmanager
    def apply(
        self, blocks: nn.ModuleList, strength: float, positions: Positions = "all"
    ) -> Iterator[None]:
        """Add `strength · v` after this vector's block inside the `with`.

        blocks: the model's decoder blocks. Nests with other steering, and leaves no hook
            behind. Positions "last" steers the last position of each pass, the prompt's last
            token and every generated one, so batches must be padded on the left. Code that
            torch.compile has made is made again, on entering and after leaving.
        """
        shift = strength * self.values
        edit = add_everywhere(shift) if positions == "all" else add_last(shift)
        with edited(blocks[self.layer], edit), retraced():
            yield


def concept_vectors(
    loaded: LoadedModel, texts: Texts, settings: Settings
) -> tuple[SteeringVector, ...]:
    """Return the steering vectors of a concept's texts, one per block.

    With random negatives, the model's own samples from an empty prompt, as many as there are
    positives, take the place of the negative texts. Vectors are kept for the next time
    (`calibrate.cache`).
    """

    def extracted() -> tuple[SteeringVector, ...]:
        positives = [encode(loaded, text) for text in texts.positives]
        if settings.negatives == "random":
            negatives = list(random_negatives(loaded, len(positives), settings))
        else:
            negatives = [encode(loaded, text) for text in texts.negatives]
        return extract_vectors(
            loaded, positives, negatives, pooling=settings.pooling, normalize=settings.normalize
        )

    names = ("negatives", "pooling", "normalize", "seed", "sampling")
    facts = asdict(settings)
    request = [asdict(texts), {name: facts[name] for name in names}]
    return recalled(loaded, VECTORS, request, extracted)


VECTORS_FILE = "vectors.safetensors"


def _vector_files(vectors: Sequence[SteeringVector]) -> dict[str, bytes]:
    tensors = {
        "values": torch.stack([vector.values for vector in vectors]),
        "residual_norms": torch.tensor([v.residual_norm for v in vectors], dtype=torch.float64),
        "n_sinks": torch.tensor([vector.n_sinks for vector in vectors]),
    }
    return {VECTORS_FILE: save(tensors)}


def _load_vectors(folder: Path) -> tuple[SteeringVector, ...]:
    tensors = load_file(folder / VECTORS_FILE)
    facts = zip(tensors["residual_norms"].tolist(), tensors["n_sinks"].tolist(), strict=True)
    return tuple(
        SteeringVector(values.clone(), layer, residual_norm, n_sinks)
        for layer, (values, (residual_norm, n_sinks)) in enumerate(
            zip(tensors["values"], facts, strict=True)
        )
    )


VECTORS = Form[tuple[SteeringVector, ...]]("vectors", _vector_files, VECTORS_FILE, _load_vectors)


def encode(loaded: LoadedModel, text: Text) -> TokenSequence:
    """Encode a concept's text, after what it replies to if it does."""
    if text.prompt is not None:
        return encode_reply(loaded, text.prompt, text.text)
    return encode_text(loaded, text.text)


def extract_vectors(
    loaded: LoadedModel,
    positives: Sequence[TokenSequence],
    negatives: Sequence[TokenSequence],
    *,
    pooling: Pooling = "mean",
    normalize: bool = False,
) -> tuple[SteeringVector, ...]:
    """Return one steering vector per block, from one pass over the texts.

    normalize: scale every vector to length 1, so that strengths are in units of ‖h‖'s space.
    Raises: ConceptError if positives and negatives have the same mean at every block.
    """
    with borrowed(loaded):
        positive = _summarise(loaded, positives, pooling)
        negative = _summarise(loaded, negatives, pooling)
    difference = (positive.mean - negative.mean).float()
    if not difference.any():
        raise ConceptError(
            "positives and negatives must differ, but their difference of means is zero; "
            "give texts that do not express the concept as negatives"
        )
    vectors = []
    for layer, values in enumerate(difference):
        norms = torch.cat([positive.norms[layer], negative.norms[layer]])
        vectors.append(
            SteeringVector(
                values=values / values.norm() if normalize else values,
                layer=layer,
                residual_norm=float(norms.median()),
                n_sinks=int(positive.n_sinks[layer] + negative.n_sinks[layer]),
            )
        )
    return tuple(vectors)


@dataclass(frozen=True, eq=False)
class _Summary:
    mean: torch.Tensor  # (n_blocks, hidden), float64
    norms: list[torch.Tensor]  # per block, (n_tokens,)
    n_sinks: torch.Tensor  # (n_blocks,)


def _summarise(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], pooling: Pooling
) -> _Summary:
    total = torch.zeros(loaded.num_layers, 1, dtype=torch.float64)
    n_sinks = torch.zeros(loaded.num_layers, dtype=torch.long)
    norms: list[list[torch.Tensor]] = [[] for _ in loaded.blocks]
    for pooled in pooled_residuals(loaded, sequences, range(loaded.num_layers), pooling):
        total = total + pooled.means.double().sum(dim=1)
        n_sinks += pooled.n_sinks
        for layer, found in enumerate(pooled.norms):
            norms[layer].append(found)
    return _Summary(total / len(sequences), [torch.cat(found) for found in norms], n_sinks)
