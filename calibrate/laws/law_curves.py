"""What `calibrate laws` writes: the paper's curves of one model and concept."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from calibrate.common.record import ModelIdentity, Section
from calibrate.laws.curves import BlockCurves


class LawCurves(Section):
    """The curves of one model and concept, one set a block.

    variants: of one block, by the other way of steering it is measured with; empty unless asked
    for.

    >>> curves = calibrate.measure_laws(
    ...     model, concept, tokenizer=tokenizer, prompts="prompts.txt", ce_budget=0.4, layers=[1]
    ... )
    >>> curves.blocks[0].strength_at_budget["negative"].value < 0
    True
    """

    model: ModelIdentity
    concept: str
    budget: float
    concept_tokens: list[str]
    n_sequences: int
    n_tokens: int
    settings: dict[str, Any]
    blocks: list[BlockCurves]
    variants: dict[str, BlockCurves] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the contents of `laws.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()
