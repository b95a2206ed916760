"""calibrate(): from a model and a concept to a verified steering config."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibrate.artefact.assemble import build_config, build_evidence, build_laws
from calibrate.artefact.beside_section import BesideSection
from calibrate.artefact.directory import KEPT_FILES, open_workspace, writing
from calibrate.common.cost import Allowance, Ledger, Limits
from calibrate.common.errors import CalibrateWarning, Infeasible
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.deploy.beside import checked_mix, opened_beside
from calibrate.deploy.finished import Calibration, found_again
from calibrate.deploy.refused import frontier_if_infeasible, report_if_infeasible
from calibrate.deploy.start import Start, opened_start, start_from
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.choice import AUTO, JudgeChoice, asked_reader, choose_judges
from calibrate.judging.digest import judge_digest
from calibrate.judging.panel import make_judges
from calibrate.judging.presence import require_headroom
from calibrate.judging.teaching import JudgeInputs
from calibrate.laws.pilot import run_pilots
from calibrate.models.cache import weights_digest, weights_hashed_once
from calibrate.models.model import preserving_model_state
from calibrate.search.affordable import asked_budgets, spendable_pilots, verify_affordable
from calibrate.search.explain import add_advice
from calibrate.search.fingerprint import fingerprint_at, fingerprint_from, fingerprint_of
from calibrate.search.forecast import forecast, questions_ahead
from calibrate.search.frontier import Bench
from calibrate.search.objective import FIRST_PART, SearchObjective, rung_sizes
from calibrate.search.sites import as_first_chosen, choose_sites
from calibrate.search.storage import StudyStore, check_storage
from calibrate.search.study import run_study
from calibrate.search.verification import Verified, verify
from calibrate.search.workers import with_first_date
from calibrate.texts.concept import Concept, read_concept, read_corpus, read_prompts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.guard_choice import GuardChoice, choose_guard
from calibrate.texts.noise import require_signal
from calibrate.texts.replies import build_corpora, sample_unsteered


def calibrate(
    model: Any = "smollm2",
    concept: str | Path | Concept = "joy",
    *,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    reply_tokens: int | None = None,
    out: str | Path | None = None,
    start: Start | None = None,
    beside: Start | None = None,
    mix: float | None = None,
    prompts: str | Path | None = None,
    corpus: str | Path | None = None,
    judge: JudgeChoice = AUTO,
    audit: JudgeChoice | None = AUTO,
    guard: GuardChoice = AUTO,
    teacher: str | None = None,
    fetch_teacher: bool = False,
    storage: str | None = None,
    study: str | None = None,
    max_tokens: int | None = None,
    max_minutes: float | None = None,
    other_budgets: Sequence[float] = (),
    progress: Progress = SILENT,
    **options: Any,
) -> Calibration:
    """Find the strength that moves a concept's presence most within a cross-entropy budget.

    model: a LoadedModel, what `load_model` takes, or a transformers model with its
        `tokenizer`; an in-memory model comes back as it was.
    concept: a built-in name, a file (`calibrate.texts.concept.read_concept`), or a `Concept`.
    chat_template_kwargs: variables for the model's chat template, such as
        {"enable_thinking": False}; recorded in the config, and used wherever the config is.
    reply_tokens: most tokens of a reply in the search (default: as `sampling` has it).
    out: directory for the artefact; the same call then resumes an interrupted study, and
        returns a finished calibration at once.
    start: an earlier calibration of the same concept, or its directory, whose model has changed
        since, as in a training: its site, probe and share of α_B are taken over, all else is
        measured, and the answer confirmed or corrected in less than half the time. Where it does
        not hold any longer, everything is searched anew.
    beside: an earlier calibration of the same model, or its directory, whose concept is to be
        steered too: both share the budget and one strength, and the config holds the vectors of
        both. mix: its share of the two, in units of the strengths that spend the budget alone;
        half if None.
    prompts: file of neutral prompts; corpus: file of texts to measure ΔCE on
        (default: the model's own unsteered replies).
    judge: who reads presence: "auto", a probe that learns from graded replies; "question",
        "openai:MODEL", "embedding", "module:function" (see `probes.judges`), a function of texts
        and concept, or an object that scores them.
    audit: a second judge, which reads the final replies; "auto" for a sentence encoder that
        learned from other graded replies than the probe, or from the texts of your own concept;
        "none" or None for nobody.
    guard: questions that steering should not make the model forget, put to it before and after: a
        file (`calibrate.texts.guard`), "lm-eval:TASK" (`calibrate.texts.harness`), "auto" for the
        built-in ones, "none" or None for none.
    teacher: who grades the model's replies for the probe to learn from: an embedded model, a hub
        id, a .gguf file, "openai:MODEL" or "none". By default built-in concepts need none, since
        graded replies come with them; others take qwen2.5-1.5b, in llama.cpp, if it was fetched
        before or fetch_teacher allows it.
    storage, study: Optuna storage URL and study name (default: a journal in `out`). All who make
        the same call on the same storage or directory, on any machine, share the study; each
        verifies its best trial into its own `out`, and of those with the same `out` one writes.
    max_tokens, max_minutes: token-forwards and minutes that may be spent; limits mean fewer blocks
        and trials, never an unverified result.
    other_budgets: to go on to where ce_budget is refused: to larger ones where it buys less than
        min_gain, to smaller ones where steering does harm; the first that is verified ships. If
        none is, what each buys is measured all the same, and is the error's `frontier`.
    options: fields of `Settings`, such as ce_budget=0.2 or goal="decrease".

    Raises: InputError for input that cannot be used; Infeasible if no strength does what was
        asked, with reasons and advice.

    >>> result = calibrate.calibrate(model, concept, tokenizer=tokenizer, out="joy/", **options)
    >>> result.config.measured.delta_ce.upper <= options["ce_budget"]
    True
    """
    mix = checked_mix(mix, beside, start)
    settings, limits = Settings(**options), Limits(max_tokens, max_minutes)
    wanted = asked_budgets(other_budgets, settings)
    if reply_tokens is not None:
        sampling = replace(settings.sampling, max_new_tokens=reply_tokens)
        settings = replace(settings, sampling=sampling)
    concept = read_concept(concept)
    audit, lesson, judges = choose_judges(
        concept, judge, audit, teacher, fetch_teacher, settings, progress
    )
    prompt_texts = read_prompts(prompts)
    guarding = choose_guard(guard, settings.max_guard_drop, settings.confidence, progress)
    corpus_texts = None if corpus is None else read_corpus(corpus)
    loaded = load_model(
        model, tokenizer, chat_template_kwargs=chat_template_kwargs, progress=progress
    )
    for layer in settings.blocks:
        loaded.check_layer(layer)
    named = (judge, audit, None if lesson is None else lesson.teacher)
    readers = [*judges, *(judge_digest(each, settings.judge_url) for each in named)]
    hashed = weights_digest(loaded)
    fingerprint = fingerprint_of(
        loaded, hashed, concept, prompt_texts, corpus_texts, readers, lesson, guarding, settings
    )
    second = None if beside is None else opened_beside(beside, mix, loaded, settings)
    if second is not None:
        fingerprint = fingerprint_from(fingerprint, second.key)
    asked = asked_reader(judge, teacher, lesson)
    earlier = None if start is None else opened_start(start, loaded, concept, settings, asked)
    if earlier is not None:
        fingerprint = fingerprint_from(fingerprint, earlier.config.provenance.fingerprint)
    results = {settings.ce_budget: fingerprint}
    for place, budget in enumerate(wanted.budgets[1:], 2):
        results[budget] = fingerprint_at(fingerprint, *wanted.budgets[1:place])
    own_out = loaded.ranks.directory(out, KEPT_FILES)
    directory, finished = open_workspace(own_out, *results.values())
    if directory is not None and finished:
        return found_again(directory, loaded, hashed)

    if earlier is not None:
        spent, began = loaded.meter.tokens, loaded.ranks.clock()
        with preserving_model_state(loaded), weights_hashed_once(loaded, hashed):
            confirmed = _confirmed(
                earlier, loaded, concept, prompt_texts, corpus_texts, asked, guarding, settings,
                fingerprint, limits, progress,
            )  # fmt: skip
        if confirmed is not None:
            with writing(directory, fingerprint):
                if directory is not None:
                    confirmed.save(directory)
            return confirmed
        limits = limits.less(loaded.meter.tokens - spent, loaded.ranks.clock() - began)

    store = StudyStore(study or f"{concept.name} on {loaded.name}", fingerprint, directory, storage)
    check_storage(store, loaded.ranks)
    loaded = with_first_date(loaded, store)
    second = None if second is None else second.ready(loaded)
    splits = concept.split()
    ahead = forecast(
        limits, loaded, concept, prompt_texts, settings, corpus is not None, lesson, guarding
    )
    progress.forecast(ahead.tokens, ahead.seconds)
    if questions := questions_ahead(judges, concept, prompt_texts, settings):
        progress.to_ask(questions)
    ledger = Ledger(loaded.meter, progress, ahead.tokens)
    allowance = Allowance(
        loaded.meter, limits, reserve=ahead.tokens["verification"], clock=loaded.ranks.clock
    )

    with (
        preserving_model_state(loaded),
        weights_hashed_once(loaded, hashed),
        report_if_infeasible(directory, loaded, concept),
    ):
        with ledger.stage("unsteered replies"):
            replies = sample_unsteered(loaded, prompt_texts, settings)
            corpora = build_corpora(loaded, replies, corpus_texts)

        with ledger.stage("steering vectors"):
            vectors = concept_vectors(loaded, splits["vector"], settings)

        with ledger.stage("blocks"):
            ranks, sites = choose_sites(
                loaded, corpora["search"], splits["probe"], vectors, ahead.blocks, settings
            )
            sites = require_signal(sites, concept)
            if settings.layer == "search":
                sites = as_first_chosen(sites, vectors, store)

        with ledger.stage("judges"):
            middle = Site((vectors[loaded.num_layers // 2],))
            material = JudgeInputs(concept.name, splits, replies, middle)
            panel = make_judges(loaded, material, judge, audit, lesson, settings, progress)
            baseline = require_headroom(panel.reader, replies, settings)

        with ledger.stage("pilot"):
            parts = rung_sizes(len(corpora["search"].sequences), FIRST_PART)
            run = run_unsteered(loaded, corpora["search"], [site.first for site in sites], parts)
            tokens = concept_tokens(loaded, splits["vector"], replies)
            if second is not None:
                sites, weights = second.join(loaded, run, sites, settings)
            pilots, wanted, settings = spendable_pilots(
                lambda its: run_pilots(loaded, run, sites, tokens, its), wanted, settings
            )

        with ledger.stage("study"):
            objective = SearchObjective(loaded, panel.reader, run, pilots, replies, settings)
            studied = run_study(pilots, objective, baseline, settings, store, allowance, progress)
        ledger.book("study", studied.cost)
        if studied.refusal is not None:
            wanted = wanted.refused(settings.ce_budget, studied.refusal)

        with writing(directory, *results.values()) as written:
            if written and directory is not None:
                return Calibration.load(directory)

            pilot, strength = pilots[studied.best.site], studied.best.strength
            joined: dict[Verified, BesideSection] = {}

            def verify_at(tried: float, its: Settings) -> Verified:
                verified = verify(
                    loaded, panel, pilot.site, tried, corpora, replies, its, allowance, guarding
                )
                if second is not None:
                    joined[verified] = second.section(verified, weights[pilot.site.name], its)
                return verified

            def affords(verifications: int) -> bool:
                expected = verifications * ahead.tokens["verification"]
                return allowance.left_for(expected, reserve=0)

            bench = Bench(loaded, pilot.site, panel, replies, corpora, settings, guarding)
            shown = frontier_if_infeasible(
                bench, pilot.law, wanted.budgets, fingerprint, directory, progress, affords
            )
            advised = add_advice(pilots, studied.trials, baseline, settings, wanted.budgets)
            with shown, advised, ledger.stage("verification"):
                bought = verify_affordable(
                    verify_at, loaded, run, pilot, strength, settings, wanted, affords
                )

            verified = bought.verified
            laws = build_laws(pilots, studied, baseline, bought)
            result = results[bought.settings.ce_budget]
            config = build_config(loaded, concept, bought, laws, panel, ledger.stages, result)
            config = config.model_copy(update={"beside": joined.get(verified)})
            evidence = build_evidence(
                ranks, pilots, studied.trials, verified, splits, replies, guarding
            )
            calibration = Calibration(config, evidence, panel.probe)
            if directory is not None:
                calibration.save(directory)
            return calibration


def _confirmed(earlier: Calibration, *given: Any) -> Calibration | None:
    """The earlier calibration confirmed or corrected; None, with a warning, if it does not hold."""
    try:
        return start_from(earlier, *given)
    except Infeasible as changed:
        warnings.warn(
            "the earlier calibration does not hold any longer, so everything is searched anew: "
            f"{changed}",
            CalibrateWarning,
            stacklevel=3,
        )
        return None
