"""The checks of the gate: identity, reference, budget, presence, long replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.saved import PROBE_FOLDER
from calibrate.common.errors import Infeasible, InputError
from calibrate.common.estimate import RatioEstimate
from calibrate.common.numbers import in_points
from calibrate.common.settings import Sampling
from calibrate.deploy.corpora import budget_corpus
from calibrate.deploy.diagnosis import Check, ReferenceInput
from calibrate.deploy.trusted import reader_again
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.guard import measure_guard
from calibrate.judging.presence import read
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering
from calibrate.search.long_run import unsteered_at_length
from calibrate.texts.guard import guard_again
from probes import Reader
from probes import load as load_probe

# Largest gap between log-probabilities of the same computation, by precision: float32 on other
# hardware stays below 1e-3; bfloat16 keeps three digits.
TOLERANCES = {"float32": 5e-3, "float64": 5e-3, "bfloat16": 0.25, "float16": 0.05}


def check_identity(config: SteeringConfig, loaded: LoadedModel) -> Iterator[Check]:
    """Compare the model with the one the config was made on, fact by fact."""
    expected, identity = config.model, asdict(loaded.identity)
    for name, what in IDENTITY.items():
        was, now = getattr(expected, name), identity[name]
        unknown = name in MAY_BE_UNKNOWN and None in (was, now)
        if unknown or was == now:
            continue
        yield Check(
            "identity",
            False,
            f"{what} must be {_short(was)}, as in the calibration, got {_short(now)} "
            f"({loaded.name}); {REMEDIES.get(name, 'calibrate this model anew')}",
        )
        return
    yield Check("identity", True, f"{loaded.name}: architecture, revision, tokenizer, template")


IDENTITY = {
    "architecture": "the architecture",
    "num_layers": "the number of blocks",
    "hidden_size": "the hidden size",
    "dtype": "the precision",
    "revision": "the model's revision",
    "tokenizer_sha256": "the tokenizer",
    "tokenization_sha256": "how the tokenizer cuts text",
    "chat_template_sha256": "the chat template",
    "adds_bos": "whether texts begin with a BOS",
}
MAY_BE_UNKNOWN = ("revision", "tokenization_sha256")
REMEDIES = {
    "dtype": "load it with --dtype, or calibrate in the precision that is served",
    "revision": "load that one, with --revision or without --model, or calibrate this one anew",
    "chat_template_sha256": "restore the template: every prompt is steered through it",
}


def why_not_same(config: SteeringConfig, loaded: LoadedModel) -> str | None:
    """Why a config does not do what it says on a model, by identity and reference; None if it does.

    To be called without gradients.
    """
    checks = [*check_identity(config, loaded)]
    if all(check.passed for check in checks):
        checks.append(check_reference(config, loaded))
    return next((check.found for check in checks if not check.passed), None)


def check_reference(config: SteeringConfig, loaded: LoadedModel) -> Check:
    """Compare the reference's log-probabilities; say which mistake explains a difference."""
    reference, tolerance = ReferenceInput(config, loaded), TOLERANCES[config.model.dtype]
    if max(*config.reference.input_ids, *config.reference.token_ids) >= loaded.embedding_rows:
        return Check(
            "reference", False, "the reference's token ids must be the model's, got others"
        )
    gap = reference.unsteered_gap()
    if gap > tolerance:
        return Check(
            "reference",
            False,
            f"unsteered log-probabilities must be as recorded within {tolerance:g}, but differ by "
            f"up to {gap:.2g}: these are other weights, or another tokenizer or precision",
        )
    found = reference.distance()
    if found.within(tolerance):
        return Check("reference", True, f"log-probabilities as recorded, within {found.gap:.1e}")
    reason = next(reference.explanations(tolerance), "no single mistake explains it")
    if found.is_hidden(tolerance):
        reason += (
            f"; but rounding in {config.model.dtype} can do as much to so small an effect, so that "
            "this cannot tell; verify on the machine it was calibrated on, or calibrate in float32"
        )
    return Check("reference", False, f"{found.why_not(tolerance)}: {reason}")


def check_budget(
    config: SteeringConfig,
    evidence: Evidence,
    loaded: LoadedModel,
    corpus: str | Path | None = None,
) -> Check:
    """Measure ΔCE as `budget_corpus` says.

    Raises: InputError if it was verified on a file, and none is given.
    """
    texts = budget_corpus(config, evidence, loaded, corpus)
    run = run_unsteered(loaded, texts, [config.site.first])
    rise = delta_ce(loaded, run, config.site, config.intervention.strength)
    return judged("budget", rise, config)


def judged(name: str, rise: RatioEstimate, config: SteeringConfig) -> Check:
    """Compare a measured ΔCE with the config's budget."""
    upper, limit = rise.upper(config.budget.confidence), config.budget.limit
    measured = (
        f"ΔCE {rise.value:.4f} on {len(rise.counts)} sequences, "
        f"{config.budget.confidence:.0%} bound {upper:.4f}"
    )
    if upper <= limit:
        return Check(name, True, f"{measured}, within {limit:g} nat")
    return Check(name, False, f"{measured}, above the budget of {limit:g} nat")


def check_presence(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel, folder: Path
) -> Iterator[Check]:
    """Draw steered and unsteered replies again, for the judge and the auditor.

    A judge that cannot be made again is named.
    """
    measured = config.measured
    judges = {"presence": (measured.judges[0], measured.presence.change)}
    if measured.audit is not None:
        judges["audit"] = measured.audit.judge, measured.audit.change
    readers: list[tuple[str, Reader]] = []
    for check, (judge, change) in judges.items():
        probe = load_probe(folder / PROBE_FOLDER) if judge == "probe" else None
        try:
            readers.append((check, reader_again(judge, config, loaded, probe)))
        except InputError as missing:
            recorded = f"{judge} read a change of {change.value:+.3f}"
            yield Check(check, True, f"{recorded}, and is not asked again here: {missing}")
    if readers:
        plain, steered = _drawn_again(config, evidence, loaded)
        for check, reader in readers:
            yield _check_change(check, reader, steered, plain, config)


def _drawn_again(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel
) -> list[tuple[Completion, ...]]:
    """The replies it was verified on, unsteered and steered."""
    prompts = [encode_prompt(loaded, text) for text in evidence.splits.prompts["verify"]]
    n_replies = config.measured.presence.n_replies
    requests = [Request(prompts, n_replies, steering) for steering in (None, _steering(config))]
    return sample_all(loaded, requests, *_sampling(config))


def _steering(config: SteeringConfig) -> Steering:
    return config.site.steering(config.intervention.strength)


def check_long_run(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel
) -> Iterator[Check]:
    """Have the same prompts answered at length again; none where the config has no long run."""
    recorded = config.measured.long_run
    if recorded is None:
        return
    texts = evidence.splits.prompts["verify"][: recorded.n_prompts]
    prompts = tuple(encode_prompt(loaded, text) for text in texts)
    sampling, seed = _sampling(config)
    sampling = replace(sampling, max_new_tokens=recorded.n_tokens)
    steering = _steering(config)
    long_replies = unsteered_at_length(loaded, prompts, sampling, seed, steering)
    excess = long_replies.excess(long_replies.steered(steering)).value
    yield Check(
        "long run",
        excess <= recorded.margin,
        f"in {recorded.n_prompts} replies of up to {recorded.n_tokens} tokens the share in loops "
        f"is {in_points(excess)} beside unsteered ones, and {in_points(recorded.margin)} will do",
    )


def check_guard(config: SteeringConfig, evidence: Evidence, loaded: LoadedModel) -> Iterator[Check]:
    """Put the guard's questions again; none where the config has no guard.

    It passes if the drop is within the bound that was recorded, and within what was allowed.
    """
    recorded, settings = config.measured.guard, config.settings
    if recorded is None:
        return
    guard = guard_again(recorded.name, recorded.sha256, evidence.guard)
    most = settings.max_guard_drop
    if guard is None:
        asked = "" if most is None else f", though --max-guard-drop {most:g} was asked for"
        said = f"this release has other built-in questions, and asks none{asked}"
        yield Check("guard", most is None, said)
        return
    guarded = measure_guard(loaded, guard, config.site, config.intervention.strength)
    change = in_points(-guarded.drop.value)
    holds = guarded.drop.value <= recorded.drop_upper
    within = most is None or guarded.drop_upper(settings.confidence) <= most
    yield Check(
        "guard",
        holds and within,
        f"the share of {recorded.n_questions} {recorded.name} questions answered rightly changes "
        f"by {change}, {'as' if holds else 'but'} {in_points(-recorded.drop.value)} was recorded"
        + ("" if within else f", and --max-guard-drop {most:g} was asked for"),
    )


def _check_change(
    name: str,
    reader: Reader,
    steered: Sequence[Completion],
    plain: Sequence[Completion],
    config: SteeringConfig,
) -> Check:
    """Whether presence changes as it did, to the first judge ("presence") or the second."""
    measured, confidence = config.measured, config.budget.confidence
    recorded, what, says = measured.presence.change, "presence", ""
    if name == "audit" and measured.audit is not None:
        recorded, what = measured.audit.change, f"presence to {reader.name}"
        says = f"; {measured.audit.says}" if measured.audit.says else ""
    try:
        change = read(reader, steered).change_from(read(reader, plain))
    except Infeasible as silent:
        return Check(name, False, str(silent))
    low, high = change.interval(confidence)
    holds = low <= recorded.value <= high and recorded.low <= change.value <= recorded.high
    return Check(
        name,
        holds,
        f"{what} changes by {change.value:+.3f} ({confidence:.0%} interval {low:+.3f} to "
        f"{high:+.3f}), {'as' if holds else 'but'} {recorded.value:+.3f} was recorded{says}",
    )


def _sampling(config: SteeringConfig) -> tuple[Sampling, int]:
    return config.settings.sampling, config.settings.seed


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
