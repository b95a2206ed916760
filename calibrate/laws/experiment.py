"""The paper's curves for one model and concept, measured, with the laws over them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrate.common.cost import Ledger
from calibrate.common.progress import SILENT, Progress
from calibrate.common.record import ModelIdentity, Section
from calibrate.common.settings import Settings
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.laws.curves import Bench, BlockCurves, block_curves
from calibrate.models.cache import weights_hashed_once
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.texts.concept import Concept, Text, Texts, read_concept, read_corpus, read_prompts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import build_corpora, sample_unsteered

DEPTHS = (1 / 6, 1 / 2, 5 / 6)  # early, middle and late block, as shares of the depth


class LawCurves(Section):
    """The curves of one model and concept, one set a block.

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

    def to_bytes(self) -> bytes:
        """Return the contents of `laws.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()


def measure_laws(
    model: Any = "smollm2",
    concept: str | Path | Concept = "joy",
    *,
    tokenizer: Any = None,
    layers: Sequence[int] = (),
    prompts: str | Path | None = None,
    corpus: str | Path | None = None,
    resamples: int = 0,
    progress: Progress = SILENT,
    **options: Any,
) -> LawCurves:
    """Measure the curves at some blocks, of both signs, and judge the laws against them.

    layers: blocks to measure; an early, a middle and a late one if none are named.
    resamples: how often the concept's texts are resampled for error bars; each costs as much as
        everything else.
    Other arguments are those of `calibrate.calibrate`; `goal`, `layer` and options of the study
    have no effect, and of several `positions` the first choice is steered.

    Raises: InputError for input that cannot be used; Infeasible if no strength spends the budget.

    >>> curves = calibrate.measure_laws(
    ...     model, concept, tokenizer=tokenizer, prompts="prompts.txt", ce_budget=0.4, layers=[1]
    ... )
    >>> [block.layer for block in curves.blocks]
    [1]
    """
    settings = Settings(**options)
    concept = read_concept(concept)
    prompt_texts = read_prompts(prompts)
    corpus_texts = None if corpus is None else read_corpus(corpus)
    loaded = load_model(model, tokenizer, progress=progress)
    chosen = [loaded.check_layer(layer) for layer in layers] or early_middle_late(loaded)
    ledger = Ledger(loaded.meter, progress)
    texts = concept.split()["vector"]
    with preserving_model_state(loaded), weights_hashed_once(loaded):
        with ledger.stage("unsteered replies"):
            replies = sample_unsteered(loaded, prompt_texts, settings, splits=("search",))
            search = build_corpora(loaded, replies, corpus_texts)["search"]
            run = run_unsteered(loaded, search, chosen)  # laws and curves of the same sequences
        with ledger.stage("steering vectors"):
            vectors = concept_vectors(loaded, texts, settings)
            resampled_vectors = [
                concept_vectors(loaded, resampled(texts, settings.seed + n), settings)
                for n in range(resamples)
            ]
        tokens = concept_tokens(loaded, texts, replies)
        bench, positions = Bench(loaded, run, tokens, settings), settings.position_choices[0]
        blocks = []
        for layer in chosen:
            with ledger.stage(f"block {layer}"):
                site, *others = (
                    Site((made[layer],), positions) for made in (vectors, *resampled_vectors)
                )
                blocks.append(block_curves(bench, site, others))
    return LawCurves(
        model=loaded.identity,
        concept=concept.name,
        budget=settings.ce_budget,
        concept_tokens=[loaded.tokenizer.decode([token]) for token in tokens],
        n_sequences=len(search.sequences),
        n_tokens=search.n_scored,
        settings=asdict(settings),
        blocks=blocks,
    )


def early_middle_late(loaded: LoadedModel) -> list[int]:
    """The blocks measured where none are named."""
    return sorted({int(depth * loaded.num_layers) for depth in DEPTHS})


def resampled(texts: Texts, seed: int) -> Texts:
    """Positives and negatives drawn anew from themselves, with replacement."""
    rng = random.Random(seed)

    def drawn(group: tuple[Text, ...]) -> tuple[Text, ...]:
        return tuple(rng.choices(group, k=len(group)))

    return Texts(drawn(texts.positives), drawn(texts.negatives))
