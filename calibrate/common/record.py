"""The base of everything that is written as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config; immutable once made."""

    model_config = ConfigDict(frozen=True)


class ModelSection(Section):
    """The model the config was made on."""

    id: str
    revision: str | None
    architecture: str
    num_layers: int
    hidden_size: int
    dtype: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    adds_bos: bool


class IntervalSection(Section):
    """A measured value with its two-sided confidence interval."""

    value: float
    low: float
    high: float
