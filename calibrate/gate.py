"""The gate before deployment: does a steering config still do what it says, on this model, here?

    identity    the model, its tokenizer and chat template are those it was calibrated with
    reference   one input's steered log-probabilities come out as they were recorded
    budget      ΔCE keeps to the budget, with its one-sided bound
    presence    the concept moves as it did
    audit       to the second judge as well, if there was one
    long run    replies as long as they are served hardly loop more than unsteered ones

Replies to the prompts it was verified on are drawn again with the recorded seed, so that an
unchanged config on an unchanged model always passes. A corpus takes the place of those replies.
Where the reference is missed, the gate looks for the mistake that explains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from calibrate.completions import Completion, Request, sample, sample_all
from calibrate.concept import read_lines
from calibrate.config import SteeringConfig, load
from calibrate.cost import Ledger
from calibrate.cross_entropy import Corpus, delta_ce, run_unsteered
from calibrate.errors import AlteredError, Infeasible, InputError
from calibrate.estimate import RatioEstimate
from calibrate.evidence import Evidence
from calibrate.judging import judge_again
from calibrate.loading import load_model, rendered_with
from calibrate.long_run import unsteered_at_length
from calibrate.model import borrowed
from calibrate.presence import read
from calibrate.progress import SILENT, Progress
from calibrate.rendering import encode_prompt
from calibrate.replies import corpus_texts
from calibrate.residual import Positions
from calibrate.settings import Sampling, Settings
from calibrate.tokens import TokenSequence
from calibrate.vector import SteeringVector
from calibrate.verify import next_log_probs
from probes import Judge, Reader
from probes import load as load_probe

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

# Largest gap between log-probabilities of the same computation, by precision: float32 on other
# hardware stays below 1e-3; bfloat16 keeps three digits.
TOLERANCES = {"float32": 5e-3, "float64": 5e-3, "bfloat16": 0.25, "float16": 0.05}
SHARES = (1e-2, 10.0)  # of the strength, within which one that explains the reference is sought


@dataclass(frozen=True)
class Check:
    """One thing the gate looked at: its name, whether it holds, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class GateReport:
    """Everything the gate looked at, in order; a check that needs an earlier one may be missing."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """What was found where it does not."""
        return tuple(check.found for check in self.checks if not check.passed)

    def with_check(self, check: Check) -> GateReport:
        """This report and one check more."""
        return GateReport((*self.checks, check))

    def facts(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def check_directory(
    directory: str | Path,
    loaded: LoadedModel | None = None,
    corpus: str | Path | None = None,
    quick: bool = False,
    progress: Progress = SILENT,
) -> GateReport:
    """Put the config in a directory to the test.

    loaded: the model to run it on (default: what `open_model` loads for it).
    corpus: a file of texts to measure ΔCE on, one a line or .jsonl.
    quick: identity and reference alone, two passes over one input.
    Raises: ArtefactError or InputError if there is nothing to check, or the model cannot be loaded.
    """
    folder = Path(directory)
    try:
        config = load(folder)
    except AlteredError as error:
        return GateReport((Check("artefact", False, str(error)),))
    model = open_model(config) if loaded is None else as_calibrated(config, loaded)
    ledger = Ledger(model.meter, progress)
    checks = list(check_identity(config, model))
    if not all(check.passed for check in checks):
        return GateReport(tuple(checks))
    with borrowed(model):
        with ledger.stage("reference"):
            checks.append(check_reference(config, model))
        if checks[-1].passed and not quick:
            evidence = Evidence.load(folder)
            with ledger.stage("budget"):
                checks.append(check_budget(config, evidence, model, corpus))
            with ledger.stage("presence"):
                checks += check_presence(config, evidence, model, folder)
            with ledger.stage("long run"):
                checks += check_long_run(config, evidence, model)
    return GateReport(tuple(checks))


def open_model(config: SteeringConfig, model: str | None = None, **options: Any) -> LoadedModel:
    """Load the model a config is for, in the precision and with the prompts of its calibration.

    model, options: another place to load it from, and other arguments of `load_model`.
    """
    how: dict[str, Any] = {"dtype": config.model.dtype, **options}
    if config.rendering is not None:
        how["chat_template_kwargs"] = config.rendering.kwargs
        how["template_date"] = config.rendering.date
    return load_model(model or config.model.id, **how)


def as_calibrated(config: SteeringConfig, loaded: LoadedModel) -> LoadedModel:
    """The same model, with prompts rendered as they were for the config."""
    if config.rendering is None:
        return loaded
    return rendered_with(loaded, config.rendering.kwargs, config.rendering.date)


def check_identity(config: SteeringConfig, loaded: LoadedModel) -> Iterator[Check]:
    """Compare the model with the one the config was made on, fact by fact."""
    expected, found = config.model, asdict(loaded.identity)
    for name, what in IDENTITY.items():
        was, now = getattr(expected, name), found[name]
        unknown = name == "revision" and None in (was, now)
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
    "chat_template_sha256": "the chat template",
    "adds_bos": "whether texts begin with a BOS",
}
REMEDIES = {
    "dtype": "load it with --dtype, or calibrate in the precision that is served",
    "revision": "load that revision with --revision, or calibrate this one anew",
    "chat_template_sha256": "restore the template: every prompt is steered through it",
}


def check_reference(config: SteeringConfig, loaded: LoadedModel) -> Check:
    """Compare the reference's log-probabilities; say which mistake explains a difference."""
    reference, tolerance = _Reference(config, loaded), TOLERANCES[config.model.dtype]
    if max(config.reference.input_ids) >= loaded.embedding_rows:
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
    gap = reference.gap()
    if gap <= tolerance:
        return Check("reference", True, f"log-probabilities as recorded, within {gap:.1e}")
    reason = next(reference.explanations(tolerance), "no single mistake explains it")
    return Check(
        "reference",
        False,
        f"steered log-probabilities must be as recorded within {tolerance:g}, but differ by up to "
        f"{gap:.2g}: {reason}",
    )


@dataclass(frozen=True, eq=False)
class _Reference:
    """The config's reference input on a model, under variants of the intervention."""

    config: SteeringConfig
    loaded: LoadedModel

    def unsteered_gap(self) -> float:
        return self._apart(0.0, self.config.reference.unsteered_log_probs)

    def gap(
        self,
        share: float = 1.0,
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        """Largest gap to the steered log-probabilities, at a share of the strength."""
        return self._apart(share, self.config.reference.log_probs, layer, positions)

    def explanations(self, tolerance: float) -> Iterator[str]:
        """Variants that would have given what was recorded."""
        done = self.config.intervention
        for layer in (done.layer - 1, done.layer + 1):
            inside = 0 <= layer < self.loaded.num_layers
            if inside and self.gap(layer=layer) <= tolerance:
                yield f"it was recorded at block {layer}, and the config says {done.layer}"
        for positions in get_args(Positions):
            if positions != done.positions and self.gap(positions=positions) <= tolerance:
                yield (
                    f"it was recorded with {positions!r} positions steered, and the config says "
                    f"{done.positions!r}"
                )
        if self.gap(share=-1.0) <= tolerance:
            yield "it was recorded with the opposite sign: the vector or the strength is negated"
        share = self._best_share()
        if self.gap(share=share) <= tolerance:
            yield (
                f"it was recorded at strength {share * done.strength:.4g}, and the config says "
                f"{done.strength:.4g}"
            )

    def _best_share(self) -> float:
        """The share of the strength that comes nearest to what was recorded."""
        near = np.geomspace(*SHARES, 13)
        start = int(np.argmin([self.gap(share=float(share)) for share in near]))
        bounds = near[max(start - 1, 0)], near[min(start + 1, len(near) - 1)]
        found = minimize_scalar(
            lambda share: self.gap(share=float(share)),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-5 * near[start]},
        )
        return float(found.x)

    def _apart(
        self,
        share: float,
        expected: Sequence[float],
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        reference, done = self.config.reference, self.config.intervention
        vector = self.config.steering_vector
        where = SteeringVector(vector.values, done.layer if layer is None else layer, 1.0)
        with where.apply(self.loaded.blocks, share * done.strength, positions or done.positions):
            found = next_log_probs(self.loaded, reference.input_ids)[reference.token_ids]
        return float((found - torch.tensor(expected)).abs().max())


def check_budget(
    config: SteeringConfig,
    evidence: Evidence,
    loaded: LoadedModel,
    corpus: str | Path | None = None,
) -> Check:
    """Measure ΔCE on a corpus file, or on the replies it was verified on, drawn again.

    Raises: InputError if it was verified on a file, and none is given.
    """
    if corpus is None and config.measured.delta_ce.corpus == "file":
        raise InputError(
            "this config was verified on a corpus file, so its budget holds for such text only; "
            "give texts like those with --corpus FILE"
        )
    if corpus is None:
        sequences = own_replies(config, evidence, loaded)
    else:
        sequences = corpus_texts(loaded, read_lines(corpus))
    done = config.intervention
    run = run_unsteered(loaded, Corpus(sequences, self_sampled=corpus is None), [done.layer])
    rise = delta_ce(
        loaded, run, config.steering_vector.values, done.layer, done.strength, done.positions
    )
    return judged("budget", rise, config)


def judged(name: str, rise: RatioEstimate, config: SteeringConfig) -> Check:
    """Hold a measured ΔCE to the config's budget."""
    upper, limit = rise.upper(config.budget.confidence), config.budget.limit
    found = (
        f"ΔCE {rise.value:.4f} on {len(rise.counts)} sequences, "
        f"{config.budget.confidence:.0%} bound {upper:.4f}"
    )
    if upper <= limit:
        return Check(name, True, f"{found}, within {limit:g} nat")
    return Check(name, False, f"{found}, above the budget of {limit:g} nat")


def own_replies(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel
) -> tuple[TokenSequence, ...]:
    """The unsteered replies a config was verified on, drawn again."""
    prompts = [encode_prompt(loaded, text) for text in evidence.splits.prompts["verify"]]
    sampling, seed = _sampling(config)
    replies = sample(loaded, prompts, sampling, seed)
    return tuple(reply.sequence for reply in replies if reply.text)


def check_presence(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel, folder: Path
) -> Iterator[Check]:
    """Draw steered and unsteered replies again, for the judge and the auditor.

    A judge that cannot be made again is named.
    """
    measured, name = config.measured, config.concept.name
    judges = {"presence": (measured.judges[0], measured.presence.change)}
    if measured.audit is not None:
        judges["audit"] = measured.audit.judge, measured.audit.change
    readers: list[tuple[str, Reader]] = []
    for check, (judge, change) in judges.items():
        try:
            readers.append((check, Reader(_again(judge, config, loaded, folder), name, judge)))
        except InputError as missing:
            said = f"{judge} read a change of {change.value:+.3f}"
            yield Check(check, True, f"{said}, and is not asked again here: {missing}")
    if readers:
        plain, steered = _drawn_again(config, evidence, loaded)
        for check, reader in readers:
            yield _moved(check, reader, steered, plain, config)


def _again(name: str, config: SteeringConfig, loaded: LoadedModel, folder: Path) -> Judge:
    """A judge of the calibration; the probe as it read what is recorded."""
    if name == "probe":
        return load_probe(folder / "probe").as_fitted.on(loaded)
    concept = config.concept
    settings = _asked_settings(config)
    return judge_again(loaded, name, concept.name, concept.data_sha256, settings)


def _asked_settings(config: SteeringConfig) -> Settings:
    """How judges that are asked were asked."""
    recorded = config.provenance.settings
    return Settings(
        judge_question=recorded.get("judge_question"), judge_url=recorded.get("judge_url")
    )


def _drawn_again(
    config: SteeringConfig, evidence: Evidence, loaded: LoadedModel
) -> list[tuple[Completion, ...]]:
    """The replies it was verified on, unsteered and steered."""
    prompts = [encode_prompt(loaded, text) for text in evidence.splits.prompts["verify"]]
    sampling, seed = _sampling(config)
    done = config.intervention
    push = config.steering_vector.push(done.strength, done.positions)
    n_replies = config.measured.presence.n_replies
    return sample_all(
        loaded, [Request(prompts, n_replies, by) for by in (None, push)], sampling, seed
    )


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
    long_replies = unsteered_at_length(loaded, prompts, sampling, seed)
    done = config.intervention
    steered = long_replies.steered(config.steering_vector.push(done.strength, done.positions))
    excess = long_replies.excess(steered).value
    yield Check(
        "long run",
        excess <= recorded.margin,
        f"in {recorded.n_prompts} replies of up to {recorded.n_tokens} tokens {excess:+.1%} of the "
        f"tokens lie in loops beside unsteered replies, and {recorded.margin:+.0%} will do",
    )


def _moved(
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
    settings = config.provenance.settings
    return Sampling(**settings["sampling"]), int(settings["seed"])


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
