"""What cost is measured on again: the very texts of the verification, or others like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.common.errors import InputError
from calibrate.engine.generation import sample
from calibrate.engine.unsteered import Corpus
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import read_corpus, read_lines
from calibrate.texts.replies import corpus_texts

Texts = Mapping[str, Sequence[str]]


def budget_corpus(
    config: SteeringConfig,
    evidence: Evidence,
    loaded: LoadedModel,
    corpus: str | Path | None = None,
) -> Corpus:
    """What a budget is checked on: a corpus file, or the replies it was verified on, drawn again.

    Of the very file it was verified on, the texts that were held out; of another one the first.
    Raises: InputError if it was verified on a file, and none is given.
    """
    require_corpus(config, corpus)
    if corpus is not None:
        held_out = _held_out(config, loaded, corpus)
        return held_out or Corpus(corpus_texts(loaded, read_lines(corpus)), self_sampled=False)
    prompts = [encode_prompt(loaded, text) for text in evidence.splits.prompts["verify"]]
    replies = sample(loaded, prompts, config.settings.sampling, config.settings.seed)
    return Corpus(tuple(each.sequence for each in replies if each.spoken), self_sampled=True)


def require_corpus(config: SteeringConfig, corpus: str | Path | None) -> None:
    """Raise InputError if a config was verified on a file, and none is given."""
    if corpus is None and config.measured.delta_ce.corpus == "file":
        raise InputError(
            "this config was verified on a corpus file, so its budget holds for such text only; "
            "give that file with --corpus FILE"
        )


def same_corpus(config: SteeringConfig, corpus: str | Path | None) -> Texts | None:
    """The texts of the corpus that a config was verified on; None for its model's own replies.

    Raises: InputError if there is one and it is not given, or none and one is.
    """
    require_corpus(config, corpus)
    if corpus is not None and config.measured.delta_ce.corpus != "file":
        raise InputError(
            "--corpus must be left out here: this config was verified on its model's own replies, "
            f"got {corpus}; calibrate with --corpus for a budget on such text"
        )
    return None if corpus is None else read_corpus(corpus)


def require_same_texts(config: SteeringConfig, held_out: Corpus) -> None:
    """Raise InputError if a corpus is not the one that a config was verified on."""
    known, given = _recorded(config), _size(held_out)
    if given != known:
        raise InputError(
            "--corpus must be the file that this config was verified on, with {} texts of {:,} "
            "tokens held out, got {} of {:,}; give the same file".format(*known, *given)
        )


def _held_out(config: SteeringConfig, loaded: LoadedModel, corpus: str | Path) -> Corpus | None:
    """The texts of the verification, if they come from this file."""
    if config.measured.delta_ce.corpus != "file":
        return None
    try:
        texts = corpus_texts(loaded, read_corpus(corpus)["verify"])
    except InputError:  # too few texts to be divided
        return None
    held_out = Corpus(texts, self_sampled=False)
    return held_out if _size(held_out) == _recorded(config) else None


def _recorded(config: SteeringConfig) -> tuple[int, int]:
    """Texts and scored tokens of the verification."""
    return config.measured.delta_ce.n_sequences, config.measured.delta_ce.n_tokens


def _size(corpus: Corpus) -> tuple[int, int]:
    return len(corpus.sequences), corpus.n_scored
