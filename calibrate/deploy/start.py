"""A calibration that begins with an earlier one: `calibrate(start=…)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrate.artefact.assemble_start import started
from calibrate.artefact.config import SteeringConfig
from calibrate.common.cost import Allowance, Ledger, Limits
from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.deploy.finished import Calibration
from calibrate.deploy.trusted import reader_again
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.choice import AUTO, JudgeChoice, judge_name
from calibrate.judging.panel import Panel, reader_of
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel
from calibrate.search.affordable import Bought
from calibrate.search.confirmation import (
    FEWER_LOOKS,
    Expected,
    confirm,
    fewer_prompts,
    require_same_reading,
)
from calibrate.search.forecast import require_room
from calibrate.search.objective import FIRST_PART, rung_sizes
from calibrate.texts.concept import Concept, Texts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.guard import Guard
from calibrate.texts.noise import require_signal
from calibrate.texts.replies import build_corpora, require_spoken, sample_splits
from probes import Reader

Start = Calibration | str | Path


def opened_start(
    start: Start,
    loaded: LoadedModel,
    concept: Concept,
    settings: Settings,
    judge: JudgeChoice | None = None,
) -> Calibration:
    """The earlier calibration, if a new one can begin with it.

    judge: who was asked for, to read the replies; None where that is left open.
    Raises: InputError for one of another concept, direction or kind of model, or of two concepts,
        or if another site or judge is asked for; ArtefactError if it cannot be read.
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
    _require_same_site(config, settings)
    reads = config.measured.judges[0]
    if judge is not None and judge_name(judge) != reads:
        raise InputError(
            f"a calibration that begins with another has its judge, {reads}, got "
            f"{judge_name(judge)}; leave --judge and --teacher out, or calibrate without --start"
        )
    return found


def _require_same_site(config: SteeringConfig, settings: Settings) -> None:
    """Refuse another site than a calibration steers, or a search for one that it did not make.

    Raises: InputError.
    """
    before, default = config.provenance.settings, Settings()
    if (settings.blocks or settings.layer) not in (
        default.layer,
        before.get("layer"),
        config.layers,
    ):
        raise InputError(
            f"a calibration that begins with another steers its {config.where}, got --layer "
            f"{settings.layer}; leave --layer out, or calibrate without --start"
        )
    steered = config.intervention.positions
    if settings.positions not in (default.positions, before.get("positions"), steered):
        raise InputError(
            f"a calibration that begins with another steers its positions, {steered}, got "
            f"--positions {settings.positions}; leave --positions out, or calibrate without --start"
        )


def start_from(
    start: Calibration,
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    corpus: Mapping[str, Sequence[str]] | None,
    judge: JudgeChoice | None,
    guard: Guard | None,
    settings: Settings,
    fingerprint: str,
    limits: Limits,
    progress: Progress = SILENT,
) -> Calibration:
    """Confirm an earlier calibration on a model that has changed, or correct it.

    prompts, corpus: as for a calibration from nothing. judge: as for `opened_start`. guard:
        questions, put only where settings limit the drop. fingerprint: of this calibration.
        limits: what may be spent; they decide whether more replies are drawn where the first leave
        it open.
    Raises: Infeasible if its answer does not hold any longer; ConceptError if its vectors are
        mostly noise by now, or the model has fallen silent; InputError if its judge cannot be made
        again, or the limits leave no room.
    """
    ledger, splits = Ledger(loaded.meter, progress), concept.split()
    asked = guard if settings.max_guard_drop is not None else None
    reader = _reader(start, loaded, judge, splits["probe"], settings)
    require_room(limits, loaded, concept, prompts, settings, corpus is not None, asked)
    allowance = Allowance(loaded.meter, limits, reserve=0, clock=loaded.ranks.clock)
    expected = Expected(
        start.config.intervention.strength, start.config.range.strength_at_budget.value
    )
    with ledger.stage("unsteered replies"):
        replies = sample_splits(loaded, fewer_prompts(prompts), settings, FEWER_LOOKS[0])
        require_spoken(replies)
        corpora = build_corpora(loaded, replies, corpus)
    with ledger.stage("steering vectors"):
        vectors = concept_vectors(loaded, splits["vector"], settings)
        layers, positions = start.config.layers, start.config.intervention.positions
        site = Site(tuple(vectors[layer] for layer in layers), positions)
        require_signal([site], concept)
    with ledger.stage("judges"):
        require_same_reading(reader, splits["held_out"])
        probe = None if start.probe is None else start.probe.as_fitted
        panel = Panel(reader, reader, None, probe)
    with ledger.stage("pilot"):
        sizes = rung_sizes(len(corpora["search"].sequences), FIRST_PART)
        run = run_unsteered(loaded, corpora["search"], [site.first], sizes)
        tokens = concept_tokens(loaded, splits["vector"], replies)
        pilot = run_pilot(loaded, run, site, tokens, settings)
    found = pilot.strength_at_budget
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


def _reader(
    start: Calibration,
    loaded: LoadedModel,
    judge: JudgeChoice | None,
    texts: Texts,
    settings: Settings,
) -> Reader:
    """The judge of the earlier calibration: the one at hand, or else made again.

    texts: the concept's "probe" split.
    """
    if judge is None or judge == AUTO:
        name = start.config.measured.judges[0]
        return reader_again(name, start.config, loaded, start.probe, texts)
    return reader_of(loaded, judge, start.config.concept.name, texts, settings)
