"""The paper's curves for one model and concept, measured, with the laws over them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from calibrate.common.blocks import check_sites
from calibrate.common.cost import Ledger
from calibrate.common.errors import (
    CalibrateError,
    CalibrateWarning,
    Infeasible,
    InputError,
    NumericalError,
)
from calibrate.common.numbers import check_resamples
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.choice import JudgeChoice, check_reading, choose_judges
from calibrate.judging.guard import warn_of_guessing
from calibrate.judging.panel import make_judges
from calibrate.judging.teaching import JudgeInputs
from calibrate.laws.bench import Bench
from calibrate.laws.curves import BlockCurves, n_strengths
from calibrate.laws.law_curves import LawCurves
from calibrate.models.cache import weights_hashed_once
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.kept_curves import accuracy_once, curves_once, presence_once
from calibrate.search.law_panels import PROMPTS, ReadingBench
from calibrate.search.sites import steered_band
from calibrate.texts.concept import Concept, Text, Texts, read_concept, read_corpus, read_prompts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.guard import Guard
from calibrate.texts.guard_choice import GuardChoice, choose_guard
from calibrate.texts.replies import build_corpora, sample_unsteered

RESAMPLED_AGAIN = 1_000_003  # added to the seed where a side came out empty
DEPTHS = (1 / 6, 1 / 2, 5 / 6)  # early, middle and late block, as shares of the depth
VARIANTS: dict[str, dict[str, Any]] = {
    "random negatives": {"negatives": "random"},
    "last token": {"positions": "last"},
    "normalised": {"normalize": True},
}


def measure_laws(
    model: Any = "smollm2",
    concept: str | Path | Concept = "joy",
    *,
    tokenizer: Any = None,
    layers: Sequence[Any] | int | str | None = (),
    prompts: str | Path | None = None,
    corpus: str | Path | None = None,
    resamples: int = 0,
    variants: bool = False,
    judge: JudgeChoice | None = None,
    teacher: str | None = None,
    guard: GuardChoice = None,
    progress: Progress = SILENT,
    **options: Any,
) -> LawCurves:
    """Measure the curves at some blocks, of both signs, and judge the laws against them.

    layers: what is steered, one after the other: blocks, bands such as "8-26", and "auto" for the
        band that is steered by default; an early, a middle and a late block if nothing is named.
    resamples: how often the concept's texts are resampled for error bars; each costs as much as
        everything else.
    variants: measure the middle one of the blocks with random negatives, steered at the last token
        only, and by a vector of length 1 as well.
    judge: who reads replies at 41 strengths up to where text degenerates, as in
        `calibrate.calibrate`, with its `teacher`; nobody if None, and then no teacher,
        `judge_question` or `judge_url` may be given.
    guard: questions put at strengths of both signs, as in `calibrate.calibrate`; none if None.
    What is measured at a block is kept in the cache, and an interrupted run goes on with the next,
    unless the model was given in memory. Presence is kept only where a probe reads it: other judges
    are asked again.
    Other arguments are those of `calibrate.calibrate`; `goal`, `layer` and options of the study
    have no effect, and of several `positions` the first choice is steered.

    Raises: InputError for input that cannot be used; Infeasible if at no block strengths of both
        signs spend the budget, or the judge cannot tell the concept.
    Warns with CalibrateWarning of blocks and variants where they do not, or that cannot be steered
    so, and of strengths at which activations are not finite, and leaves them out.

    >>> curves = calibrate.measure_laws(
    ...     model, concept, tokenizer=tokenizer, prompts="prompts.txt", ce_budget=0.4, layers=[1]
    ... )
    >>> [block.layer for block in curves.blocks]
    [1]
    """
    settings = Settings(**options)
    check_resamples(resamples)
    asked_sites = check_sites(layers)
    concept = read_concept(concept)
    lesson = None
    check_reading(concept, judge, teacher, settings)
    if judge is not None:
        _, lesson, _ = choose_judges(concept, judge, None, teacher, False, settings, progress)
    prompt_texts = read_prompts(prompts)
    questions = choose_guard(guard, progress=progress)
    corpus_texts = None if corpus is None else read_corpus(corpus)
    loaded = load_model(model, tokenizer, progress=progress)
    chosen = chosen_blocks(loaded, asked_sites)
    ledger = Ledger(loaded.meter, progress)
    splits = concept.split()
    texts = splits["vector"]
    with preserving_model_state(loaded), weights_hashed_once(loaded):
        with ledger.stage("unsteered replies"):
            answered = ("search",) if judge is None else ("probe", "search", "verify")
            replies = sample_unsteered(loaded, prompt_texts, settings, splits=answered)
            search = build_corpora(loaded, replies, corpus_texts)["search"]
            firsts = sorted({layers[0] for layers in chosen})
            run = run_unsteered(loaded, search, firsts)  # laws and curves of the same sequences
        with ledger.stage("steering vectors"):
            vectors = concept_vectors(loaded, texts, settings)
            resampled_vectors = [
                concept_vectors(loaded, resampled(texts, settings.seed + n), settings)
                for n in range(resamples)
            ]
        reading = None
        if judge is not None:
            with ledger.stage("judges"):
                material = JudgeInputs(
                    concept.name, splits, replies, Site((vectors[loaded.num_layers // 2],))
                )
                panel = make_judges(loaded, material, judge, None, lesson, settings, progress)
                asked = replies.prompts["verify"][:PROMPTS]
                reading = ReadingBench(loaded, panel.reader, panel.probe, asked, settings)
        bench = Bench(loaded, run, concept_tokens(loaded, texts, replies), settings)
        positions = settings.position_choices[0]
        blocks: list[BlockCurves] = []
        for steered in chosen:
            site, *others = (
                Site(tuple(made[layer] for layer in steered), positions)
                for made in (vectors, *resampled_vectors)
            )
            try:
                with ledger.stage(site.where):
                    block = curves_once(bench, site, others)
            except (Infeasible, NumericalError) as failure:
                if steered == chosen[-1] and not blocks:
                    raise
                _warn_left_out(site.where, failure)
                continue
            _warn_of_strengths_left_out(site.where, block)
            blocks.append(with_panels(bench, site, block, reading, questions, ledger))
        middle = blocks[len(blocks) // 2]
        ways = measure_variants(bench, texts, middle, ledger) if variants else {}
    return LawCurves(
        model=loaded.identity,
        concept=concept.name,
        budget=settings.ce_budget,
        concept_tokens=[loaded.tokenizer.decode([token]) for token in bench.concept_tokens],
        n_sequences=len(search.sequences),
        n_tokens=search.n_scored,
        settings=asdict(settings),
        blocks=blocks,
        variants=ways,
    )


def chosen_blocks(loaded: LoadedModel, asked: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The blocks of each site that is measured, once: our own choice where none is asked for.

    Raises: ModelError for blocks that the model has not.
    """
    if not asked:
        return [(layer,) for layer in early_middle_late(loaded)]
    sites = [one or steered_band(loaded.num_layers) for one in asked]
    checked = [tuple(loaded.check_layer(layer) for layer in site) for site in sites]
    return list(dict.fromkeys(checked))


def _warn_left_out(what: str, failure: CalibrateError) -> None:
    warnings.warn(f"{what} is left out: {failure}", CalibrateWarning, stacklevel=3)


def _warn_of_strengths_left_out(where: str, block: BlockCurves) -> None:
    """Say at how many strengths activations were not finite, now or when they were measured."""
    missing = n_strengths() - len(block.strengths)
    if missing:
        warnings.warn(
            f"{missing} strengths at {where} are left out, below {block.strengths[0]:.3g} or above "
            f"{block.strengths[-1]:.3g}: activations are not finite there; use --dtype float32",
            CalibrateWarning,
            stacklevel=3,
        )


@contextmanager
def _unless_not_finite(what: str) -> Iterator[None]:
    """Leave out what the `with` measures, with a warning, where activations are not finite."""
    try:
        yield
    except NumericalError as failure:
        _warn_left_out(what, failure)


def with_panels(
    bench: Bench,
    site: Site,
    block: BlockCurves,
    reading: ReadingBench | None,
    questions: Guard | None,
    ledger: Ledger,
) -> BlockCurves:
    """A block's curves, with presence and accuracy where they were asked for.

    Warns with CalibrateWarning if the plain model knows no more of the questions than guessing
    does, measured now or before, and of what is left out since activations are not finite.
    """
    unit, panels = block.strength_at_budget["positive"].value, dict[str, Any]()
    if reading is not None:
        stage = f"replies, {site.where}"
        with _unless_not_finite(stage), ledger.stage(stage):
            panels["presence"] = presence_once(reading, site, unit)
    if questions is not None:
        stage = f"questions, {site.where}"
        with _unless_not_finite(stage), ledger.stage(stage):
            asked = accuracy_once(bench, site, questions, unit)
            unsteered = asked.accuracy[asked.strengths.index(0.0)]
            warn_of_guessing(asked.guard, unsteered, asked.chance)
            panels["accuracy"] = asked
    return block.model_copy(update=panels)


def measure_variants(
    bench: Bench, texts: Texts, block: BlockCurves, ledger: Ledger
) -> dict[str, BlockCurves]:
    """The curves there by the other ways of steering, but for the one it is steered.

    Warns with CalibrateWarning of a way that has no vectors, or by which no strength spends the
    budget, and leaves it out.
    """
    found = {}
    for name, differs in VARIANTS.items():
        settings = replace(bench.settings, **differs)
        if settings == bench.settings:
            continue
        try:
            with ledger.stage(name):
                vectors = concept_vectors(bench.loaded, texts, settings)
                steered = tuple(vectors[layer] for layer in block.layers or [block.layer])
                site = Site(steered, settings.position_choices[0])
                found[name] = curves_once(replace(bench, settings=settings), site)
        except (Infeasible, InputError) as failure:
            _warn_left_out(name, failure)
        else:
            _warn_of_strengths_left_out(name, found[name])
    return found


def early_middle_late(loaded: LoadedModel) -> list[int]:
    """The blocks measured where none are named."""
    return sorted({int(depth * loaded.num_layers) for depth in DEPTHS})


def resampled(texts: Texts, seed: int) -> Texts:
    """Texts drawn anew from themselves, with replacement: whole groups, such as matched pairs.

    A group is drawn for both sides where it has texts on both, and for its own side otherwise.
    """
    rng = random.Random(seed)
    positives, negatives = (grouped(side) for side in (texts.positives, texts.negatives))
    if positives.keys().isdisjoint(negatives):
        kept = [rng.choices([*side], k=len(side)) for side in (positives, negatives)]
    else:
        both = [*dict.fromkeys([*positives, *negatives])]
        kept = [rng.choices(both, k=len(both))] * 2
    drawn = [
        tuple(text for key in keys for text in side.get(key, ()))
        for keys, side in zip(kept, (positives, negatives), strict=True)
    ]
    return Texts(*drawn) if all(drawn) else resampled(texts, seed + RESAMPLED_AGAIN)


def grouped(side: Sequence[Text]) -> dict[str, list[Text]]:
    """Texts by their group."""
    groups: dict[str, list[Text]] = {}
    for text in side:
        groups.setdefault(text.key, []).append(text)
    return groups
