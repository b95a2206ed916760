"""A calibration that begins with an earlier one: `calibrate(start=…)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrate.artefact.assemble_start import started
from calibrate.common.cost import Allowance, Ledger, Limits
from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.deploy.checks import reader_again
from calibrate.deploy.finished import Calibration
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.panel import Panel
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel
from calibrate.search.affordable import Bought
from calibrate.search.confirmation import (
    FEWER_LOOKS,
    SEARCH_SHARE,
    Expected,
    confirm,
    require_same_reading,
)
from calibrate.search.objective import FIRST_PART, rung_sizes
from calibrate.texts.concept import Concept, split_prompts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.guard import Guard
from calibrate.texts.noise import require_signal
from calibrate.texts.replies import build_corpora, require_spoken, sample_splits

Start = Calibration | str | Path
NO_LIMITS = Limits()


def opened_start(
    start: Start, loaded: LoadedModel, concept: Concept, settings: Settings
) -> Calibration:
    """The earlier calibration, if a new one can begin with it.

    Raises: InputError for one of another concept, direction or kind of model, or of two concepts;
        ArtefactError if it cannot be read.
    """
    found = start if isinstance(start, Calibration) else Calibration.load(start)
    config, model = found.config, found.config.model
    if config.beside is not None:
        raise InputError(
            "the calibration to start with must steer one concept, got one that also steers "
            f"{config.beside.name!r}; calibrate the pair anew, with --beside"
        )
    asked = {
        "the concept's texts": (config.concept.data_sha256, concept.data_sha256),
        "the goal": (config.concept.goal, settings.goal),
        "the number of blocks": (model.num_layers, loaded.num_layers),
        "the hidden size": (model.hidden_size, loaded.hidden_size),
        "the chat template": (
            model.chat_template_sha256,
            loaded.identity.chat_template_sha256,
        ),
    }
    for what, (was, now) in asked.items():
        if was != now:
            raise InputError(
                f"{what} must be as in the calibration to start with, {str(was)[:12]}, got "
                f"{str(now)[:12]}; calibrate without --start"
            )
    if settings.blocks and settings.blocks != config.layers:
        raise InputError(
            f"a calibration that begins with another steers its {config.where}, got --layer "
            f"{settings.layer}; leave --layer out, or calibrate without --start"
        )
    return found


def start_from(
    start: Calibration,
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    corpus: Mapping[str, Sequence[str]] | None,
    guard: Guard | None,
    settings: Settings,
    fingerprint: str,
    limits: Limits = NO_LIMITS,
    progress: Progress = SILENT,
) -> Calibration:
    """Confirm an earlier calibration on a model that has changed, or correct it.

    prompts, corpus: as for a calibration from nothing. guard: questions, put only where settings
        limit the drop. fingerprint: of this calibration. limits: what may be spent; they decide
        whether more replies are drawn where the first leave it open.
    Raises: Infeasible if its answer does not hold any longer; ConceptError if its vectors are
        mostly noise by now, or the model has fallen silent; InputError if its judge cannot be made
        again.
    """
    ledger, splits = Ledger(loaded.meter, progress), concept.split()
    allowance = Allowance(loaded.meter, limits, reserve=0, clock=loaded.ranks.clock)
    expected = Expected(
        start.config.intervention.strength, start.config.range.strength_at_budget.value
    )
    with ledger.stage("unsteered replies"):
        chosen = split_prompts(prompts)
        fewer = chosen["search"][: max(1, round(SEARCH_SHARE * len(chosen["search"])))]
        parts = {"search": fewer, "verify": chosen["verify"]}
        replies = sample_splits(loaded, parts, settings, FEWER_LOOKS[0])
        require_spoken(replies)
        corpora = build_corpora(loaded, replies, corpus)
    with ledger.stage("steering vectors"):
        vectors = concept_vectors(loaded, splits["vector"], settings)
        layers, positions = start.config.layers, start.config.intervention.positions
        site = Site(tuple(vectors[layer] for layer in layers), positions)
        require_signal([site], concept)
    with ledger.stage("judges"):
        reader = reader_again(start.config.measured.judges[0], start.config, loaded, start.probe)
        require_same_reading(reader, splits["held_out"])
        probe = None if start.probe is None else start.probe.as_fitted
        panel = Panel(reader, reader, None, probe)
    with ledger.stage("pilot"):
        sizes = rung_sizes(len(corpora["search"].sequences), FIRST_PART)
        run = run_unsteered(loaded, corpora["search"], [site.first], sizes)
        tokens = concept_tokens(loaded, splits["vector"], replies)
        pilot = run_pilot(loaded, run, site, tokens, settings)
    found = pilot.strength_at_budget
    asked = guard if settings.max_guard_drop is not None else None
    with ledger.stage("verification"):
        verified = confirm(
            loaded, reader, site, expected.now(found), corpora, replies, settings, asked, allowance
        )
    config, evidence = started(
        start.config,
        loaded,
        concept,
        Bought(verified, pilot, settings),
        panel,
        splits,
        replies,
        asked,
        expected.confirmed_by(found),
        fingerprint,
        ledger,
    )
    return Calibration(config, evidence, probe)
