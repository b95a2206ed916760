"""The tokens' log-odds M = ∂logit/∂α at α = 0, and what follows from them without any steering.

    M_c(z) = d logit_z(c) / dα       log-odds of token z in context c, per unit strength
    c      = E Var_p₀[M]             curvature of ΔCE (arXiv:2602.02712, Theorem 3.8)
    g      = E[E_p₀[M] - M(label)]   slope of ΔCE; 0 in expectation on the model's own text
    P±     = limit of ΔCE as α → ±∞  where the logits are norm(±v)·W_Uᵀ (Proposition 4.1)
    F, F'  = mass of the concept's tokens, and its derivative F(1 - F)·ν (Theorem 3.6)

In float32 M is a central difference of two passes: as accurate as a forward-mode derivative and
a third faster on the models measured, since dual numbers cannot use fused attention. In half
precision the difference would drown in rounding, so there M is the forward-mode derivative,
where the model's operations have one. Logits are made in slices and reduced as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.common.errors import ran_out_of_memory
from calibrate.engine.cross_entropy import steered_hidden, tangent_hidden
from calibrate.engine.last_residual import read_out
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredBatch, UnsteeredRun, logit_slices
from calibrate.laws.formulas import CrossEntropyLaw, MassLaw
from calibrate.laws.tokens import TokenLaw
from calibrate.models.model import LoadedModel

EPSILON_SHARE = 0.01  # ε‖v‖ / median ‖h‖: small enough to be linear, large enough for float32
FAR = 1e4  # multiple of the residual norm at which only v is left in the residual stream
FARTHEST = 0.01  # of the largest number of the model's precision, which no norm may overflow
SAMPLE_CONTEXTS = 16  # contexts whose whole distribution is stored for the token law
CONTEXT_TOKENS = 24  # of a context, to be read

Derivative = Callable[[slice], torch.Tensor]


@dataclass(frozen=True, eq=False)
class LogOdds:
    """What the log-odds of one vector on one corpus add up to, sequence by sequence.

    curvature, slope: arrays (n_sequences,), sums over a sequence's scored tokens of Var_p₀[M]
        and of E_p₀[M] - M(label). counts: scored tokens.
    plateaus: by sign, arrays (n_sequences,), sums of the rise of CE infinitely far out.
    mass, mass_change: arrays (n_sequences,), sums of the mass F of the concept's tokens and of
        dF/dα.
    tokens: the token law in SAMPLE_CONTEXTS contexts, without saturation.
    """

    curvature: np.ndarray
    slope: np.ndarray
    plateaus: dict[int, np.ndarray]
    counts: np.ndarray
    mass: np.ndarray
    mass_change: np.ndarray
    tokens: TokenLaw

    def law(self, sign: int, weights: np.ndarray | None = None) -> CrossEntropyLaw:
        """The law of ΔCE for one sign, without saturation.

        weights: how often each sequence counts; once each if None.
        """
        weights = np.ones(len(self.counts)) if weights is None else weights
        total = weights @ self.counts
        return CrossEntropyLaw(
            slope=float(weights @ self.slope / total),
            curvature=float(weights @ self.curvature / total),
            saturation=0.0,
            plateau=float(weights @ self.plateaus[sign] / total),
        )

    def mass_law(self, weights: np.ndarray | None = None) -> MassLaw:
        """The law of the concept's mass, without saturation; weights as in `law`."""
        weights = np.ones(len(self.counts)) if weights is None else weights
        total = weights @ self.counts
        mass, change = float(weights @ self.mass / total), float(weights @ self.mass_change / total)
        return MassLaw.from_mass(mass, change / max(mass * (1 - mass), 1e-12))


def measure_log_odds(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    concept_tokens: Sequence[int],
) -> LogOdds:
    """Measure every token's log-odds on a corpus, and reduce them.

    concept_tokens: ids of the tokens whose mass stands for the concept.
    """
    sequences = run.corpus.sequences
    tokens = torch.tensor(list(concept_tokens), dtype=torch.long).to(loaded.logits_device)
    limits = {sign: torch.log_softmax(far_logits(loaded, site, sign), -1) for sign in (1, -1)}
    sums = np.zeros((6, len(sequences)))
    counts = np.array([sequence.n_scored for sequence in sequences], dtype=float)
    wanted = sampled_contexts(run)
    contexts: list[tuple[np.ndarray, np.ndarray]] = []
    n_seen = 0
    for unsteered in run.batches:
        labels = unsteered.labels()
        per_token = torch.empty(6, len(labels), dtype=torch.float64)
        with logit_derivative(loaded, unsteered, site) as derivative:
            for part in logit_slices(loaded, unsteered.hidden):
                log_p = torch.log_softmax(loaded.logits(unsteered.hidden[part]), dim=-1)
                odds = derivative(part)
                label = None if run.corpus.self_sampled else labels[part]
                per_token[:4, part] = _reduced(log_p, odds, limits, label)
                per_token[4:, part] = _concept_mass(log_p.exp(), odds, tokens)
                rows = [row - n_seen for row in wanted if 0 <= row - n_seen < len(log_p)]
                contexts.append((_rows(log_p, rows), _rows(odds, rows)))
                n_seen += len(log_p)
        sums[:, list(unsteered.batch.rows)] = unsteered.batch.sums(per_token)
    return LogOdds(
        curvature=sums[0],
        slope=sums[1],
        plateaus={1: sums[2], -1: sums[3]},
        counts=counts,
        mass=sums[4],
        mass_change=sums[5],
        tokens=TokenLaw(
            log_p=np.concatenate([log_p for log_p, _ in contexts]),
            log_odds=np.concatenate([odds for _, odds in contexts]),
        ),
    )


def sampled_contexts(run: UnsteeredRun) -> list[int]:
    """Indices of the scored tokens whose contexts the token law describes, evenly spread."""
    total = run.corpus.n_scored
    picked = np.linspace(0, total - 1, min(SAMPLE_CONTEXTS, total))
    return sorted({int(index) for index in picked})


def text_before(loaded: LoadedModel, run: UnsteeredRun, scored: int) -> str:
    """The end of the text before a scored token, counted batch by batch."""
    for unsteered in run.batches:
        for sequence in unsteered.batch.sequences:
            if scored < sequence.n_scored:
                end = sequence.start + scored
                ids = sequence.ids[max(0, end - CONTEXT_TOKENS) : end]
                return str(loaded.tokenizer.decode(list(ids)))
            scored -= sequence.n_scored
    raise IndexError(scored)


@contextmanager
def logit_derivative(
    loaded: LoadedModel, unsteered: UnsteeredBatch, site: Site
) -> Iterator[Derivative]:
    """Yield a function from rows of `unsteered.hidden` to ∂logit/∂α there, (rows, vocabulary).

    Raises: torch.OutOfMemoryError where the derivative does not fit in memory: a difference might,
        and is worth little in half precision.
    """
    derivative = None
    with ExitStack() as stack:
        if unsteered.hidden.dtype != torch.float32:
            stack.enter_context(forward_ad.dual_level())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels have none
            try:
                derivative = forward_derivative(loaded, unsteered, site)
            except (NotImplementedError, RuntimeError) as error:  # torch raises either
                if ran_out_of_memory(error):
                    raise
                stack.close()
        yield derivative or central_difference(loaded, unsteered, site)


def forward_derivative(loaded: LoadedModel, unsteered: UnsteeredBatch, site: Site) -> Derivative:
    """∂logit/∂α from one pass with dual numbers; to be used within one `dual_level`.

    Raises: NotImplementedError or RuntimeError if an operation of the model has no forward
        derivative.
    """
    dual = tangent_hidden(loaded, unsteered, site)

    def derivative(part: slice) -> torch.Tensor:
        logits = loaded.logits(dual[part])
        tangent: torch.Tensor | None
        tangent = forward_ad.unpack_dual(logits).tangent  # type: ignore[no-untyped-call]
        if tangent is None:
            raise NotImplementedError("an operation of the model drops the tangent")
        return tangent

    derivative(slice(0, 1))
    return derivative


def central_difference(loaded: LoadedModel, unsteered: UnsteeredBatch, site: Site) -> Derivative:
    """∂logit/∂α from two passes at ±ε, where ε‖v‖ is EPSILON_SHARE of the residual norm."""
    epsilon = EPSILON_SHARE * site.residual_norm / site.norm
    plus, minus = (
        steered_hidden(loaded, unsteered, site, strength) for strength in (epsilon, -epsilon)
    )
    return lambda part: (loaded.logits(plus[part]) - loaded.logits(minus[part])) / (2 * epsilon)


def far_logits(loaded: LoadedModel, site: Site, sign: int) -> torch.Tensor:
    """Logits norm(±v)·W_Uᵀ, shape (vocabulary,): the limit of steering (Proposition 4.1).

    v is the sum of the site's vectors: what the blocks between them add stays bounded, since they
    read a normalised residual stream.
    """
    far = sign * FAR * site.residual_norm * site.total / site.norm
    largest = FARTHEST * torch.finfo(loaded.dtype).max
    far = far * (largest / far.abs().max()).clamp(max=1)
    return read_out(loaded, far[None])[0]


def _rows(values: torch.Tensor, rows: list[int]) -> np.ndarray:
    picked: np.ndarray = values[rows].cpu().double().numpy()
    return picked


def _reduced(
    log_p: torch.Tensor,
    odds: torch.Tensor,
    limits: dict[int, torch.Tensor],
    label: torch.Tensor | None,
) -> torch.Tensor:
    """Curvature, slope and both plateaus of each token, float64 of shape (4, n_tokens)."""
    p = log_p.exp()
    mean = (p * odds).sum(dim=-1)
    variance = (p * (odds - mean[:, None]) ** 2).sum(dim=-1)
    if label is None:  # the label is a draw from p, so its expectation stands for it
        slope = torch.zeros_like(mean)
        plateaus = [(p * (log_p - limit)).sum(dim=-1) for limit in limits.values()]
    else:
        slope = mean - odds.gather(1, label[:, None])[:, 0]
        chosen = log_p.gather(1, label[:, None])[:, 0]
        plateaus = [chosen - limit[label] for limit in limits.values()]
    return torch.stack([variance, slope, *plateaus]).cpu().double()


def _concept_mass(p: torch.Tensor, odds: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mass F of the concept's tokens and dF/dα in each context, float64 (2, n_tokens)."""
    mean = (p * odds).sum(dim=-1, keepdim=True)
    chosen = p[:, tokens]
    derivative = (chosen * (odds[:, tokens] - mean)).sum(dim=-1)
    return torch.stack([chosen.sum(dim=-1), derivative]).cpu().double()
