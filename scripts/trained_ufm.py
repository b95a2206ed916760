"""The paper's own model, trained: figures 2 to 5 and B.1 of arXiv:2602.02712 beside its theorems.

An unconstrained features model has a free embedding for every context and a linear decoder
(Definition 2.2). Nine letters make three concepts, contexts are three letters of one of them, and a
letter of the context's own concept is likelier than another (Definition 2.1, Assumption 1). Plain
gradient descent on cross-entropy; then W(h + αv) is compared with what the theorems say of the
data alone. A few seconds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markdown_tables import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import logsumexp

from calibrate.laws.tokens import TokenLaw, bumps

LETTERS = ("abc", "ABC", "αβγ")  # the concepts; the first is steered towards, away from the second
CONTEXT = 3  # letters
SMOOTHING = 0.05  # ε: the probability that a letter of another concept follows
EQUAL, UNEQUAL = (1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.5)  # how a concept shares out its letters
WIDTH, RATE, MOMENTUM, STEPS = 16, 3.0, 0.9, 4000
STRENGTHS = np.linspace(-6, 6, 241)
NEAR = np.linspace(-0.1, 0.1, 41)
COLOURS = ("#4c72b0", "#dd8452", "#55a868")

Facts = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """A model and its data.

    log_p: (n_contexts, n_letters), of the data. concept: of each context; own: of each letter.
    logits, shift: of the model, (n_contexts, n_letters), and what one unit of v adds to them.
    losses: cross-entropy while training, nats.
    """

    log_p: np.ndarray
    concept: np.ndarray
    own: np.ndarray
    logits: np.ndarray
    shift: np.ndarray
    losses: list[float]

    @property
    def entropy(self) -> float:
        """The least cross-entropy the data allow."""
        return float(-(np.exp(self.log_p) * self.log_p).sum(axis=1).mean())

    @property
    def log_odds(self) -> np.ndarray:
        """M of the data (Definition 3.2), (n_letters,)."""
        target, negative = (self.log_p[self.concept == each].mean(axis=0) for each in (0, 1))
        odds: np.ndarray = target - negative
        return odds

    def steered(self, strength: float) -> np.ndarray:
        """Next-letter probabilities of the trained model, steered."""
        logits = self.logits + strength * self.shift
        probabilities: np.ndarray = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        return probabilities

    @property
    def law(self) -> TokenLaw:
        """Theorem 3.3 for these data."""
        return TokenLaw(self.log_p, np.tile(self.log_odds, (len(self.log_p), 1)))


def trained(shares: tuple[float, ...], seed: int = 0) -> Trained:
    """Train on data in which each concept shares out its letters like that."""
    contexts = [
        (index, letters)
        for index, concept in enumerate(LETTERS)
        for letters in itertools.product(concept, repeat=CONTEXT)
    ]
    concept = np.array([index for index, _ in contexts])
    own = np.repeat(np.arange(len(LETTERS)), len(LETTERS[0]))
    inside = (1 - SMOOTHING) * np.tile(shares, len(LETTERS))
    outside = SMOOTHING / (len(own) - len(LETTERS[0]))
    log_p = np.log(np.where(concept[:, None] == own, inside, outside))
    torch.manual_seed(seed)
    decoder = torch.randn(len(own), WIDTH, dtype=torch.float64).mul(0.1).requires_grad_()
    features = torch.randn(WIDTH, len(concept), dtype=torch.float64).mul(0.1).requires_grad_()
    optimizer = torch.optim.SGD([decoder, features], lr=RATE, momentum=MOMENTUM)
    p, losses = torch.from_numpy(np.exp(log_p)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        predicted = (decoder @ features).T.log_softmax(dim=1)
        loss = -(p * predicted).sum(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        mean = [features[:, torch.from_numpy(concept == each)].mean(dim=1) for each in (0, 1)]
        logits = (decoder @ features).T.numpy()
        shift = (decoder @ (mean[0] - mean[1])).numpy()
    return Trained(log_p, concept, own, logits, shift, losses)


def facts(equal: Trained, unequal: Trained) -> Facts:
    """What the trained models show, beside the theorems."""
    curves = np.stack([unequal.steered(strength) for strength in STRENGTHS])
    tilted = np.stack([unequal.law.predict(strength) for strength in STRENGTHS])
    here = curves[:, shown(unequal)]
    peaks = STRENGTHS[here.argmax(axis=0)]
    target = unequal.own == 0
    extreme = np.argsort(unequal.log_odds)[[0, -1]]
    quadratic = 0.5 * unequal.law.curvature * NEAR**2
    rises = np.array([rise(unequal, strength) for strength in NEAR])
    return {
        "entropy": equal.entropy,
        "loss": equal.losses[-1],
        "worst probability": float(np.abs(equal.steered(0.0) - np.exp(equal.log_p)).max()),
        "worst curve": float(np.abs(curves - tilted).max()),
        "one bump": int(sum(bumps(curve) == 1 for curve in here.T)),
        "letters": len(unequal.own),
        "last other peak": float(peaks[~target].max()),
        "first target peak": float(peaks[target].min()),
        "monotone": [
            bool((np.diff(here[:, extreme[1]]) >= 0).all()),
            bool((np.diff(here[:, extreme[0]]) <= 0).all()),
        ],
        "other concept": [float(here[at][unequal.own == 2].sum()) for at in (0, -1)],
        "target rises": bool((np.diff(here[:, target].sum(axis=1)) >= 0).all()),
        "quadratic": float(np.abs(rises[[0, -1]] / quadratic[[0, -1]] - 1).max()),
    }


def shown(model: Trained) -> int:
    """The context that is looked at, of the concept that is neither wanted nor unwanted."""
    return int(np.flatnonzero(model.concept == 2)[0])


def rise(model: Trained, strength: float) -> float:
    """ΔCE of the trained model on its data, nats per token."""
    p = np.exp(model.log_p)
    before, after = (np.log(model.steered(at)) for at in (0.0, strength))
    return float((p * (before - after)).sum(axis=1).mean())


def picture(model: Trained) -> Figure:
    """Figures 2, 3 with B.1, 4 and 5."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    data, tokens, concepts, cost = figure.subplots(2, 2).ravel()
    letters = "".join(LETTERS)
    for index in (0, 1):
        row = int(np.flatnonzero(model.concept == index)[0])
        data.plot(list(letters), np.exp(model.log_p[row]), "o", color=COLOURS[index],
                  label=f"after letters of {LETTERS[index]}")  # fmt: skip
    titled(data, "the data (figure 2)", "probability of the next letter")
    context = shown(model)
    curves = np.stack([model.steered(strength)[context] for strength in STRENGTHS])
    laws = np.stack([model.law.predict(strength)[context] for strength in STRENGTHS])
    for letter, concept in enumerate(model.own):
        colour = COLOURS[concept]
        tokens.plot(STRENGTHS, (curves - curves[len(STRENGTHS) // 2])[:, letter], color=colour)
        tokens.plot(STRENGTHS, (laws - laws[len(STRENGTHS) // 2])[:, letter], "k:", lw=0.8)
    titled(tokens, "letters, trained and Theorem 3.3 (3 and B.1)", "rise of probability")
    for concept, name in enumerate(LETTERS):
        mine = model.own == concept
        change = curves[:, mine].mean(axis=1)
        concepts.plot(STRENGTHS, change - change[len(STRENGTHS) // 2], color=COLOURS[concept],
                      label=name)  # fmt: skip
        law = laws[:, mine].mean(axis=1)
        concepts.plot(STRENGTHS, law - law[len(STRENGTHS) // 2], "k:", lw=0.8)
    titled(concepts, "concepts, and Theorem 3.6 (figure 4)", "mean rise of its letters")
    cost.plot(NEAR, [rise(model, strength) for strength in NEAR], color=COLOURS[0], label="trained")
    cost.plot(NEAR, 0.5 * model.law.curvature * NEAR**2, "k:", label="Theorem 3.8")
    titled(cost, "cross-entropy near 0 (figure 5)", "ΔCE, nats a letter")
    return figure


def titled(axes: Axes, title: str, what: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def section(found: Facts) -> str:
    """The section of docs/reproduction.md."""
    rise, fall = found["monotone"]
    low, high = found["other concept"]
    rows = [
        [
            "Assumption 2: loss, and the data's entropy",
            f"{found['loss']:.5f}, {found['entropy']:.5f}",
        ],
        ["worst error of a probability, unsteered", f"{found['worst probability']:.1e}"],
        ["worst error of Theorem 3.3's curves, α from -6 to 6", f"{found['worst curve']:.1e}"],
        ["letters with one bump", f"{found['one bump']} of {found['letters']}"],
        [
            "last peak of another letter, first of a target letter",
            f"{found['last other peak']:.2f}, {found['first target peak']:.2f}",
        ],
        ["the letter of largest M only rises, that of smallest only falls", f"{rise}, {fall}"],
        ["Theorem 3.6: the target only rises", f"{found['target rises']}"],
        ["the concept in between, mass left of 0.95 at either end", f"{low:.1e}, {high:.1e}"],
        ["Theorem 3.8 at α = ±0.1, relative error", f"{found['quadratic']:.1%}"],
    ]
    return f"{HEADER}\n{table(['', 'trained model'], rows)}"


HEADER = f"""## The paper's own model

`scripts/reproduce_paper.py --ufm` trains the unconstrained features model by gradient descent on
nine letters in three concepts, ε = {SMOOTHING:g}, equally likely within a concept for the first two
rows (the data of the paper's Appendix B.1, whose loss is 1.3318 at an entropy of 1.3317) and with
shares {", ".join(f"{share:g}" for share in UNEQUAL)} for the others, since tokens of equal log-odds
all peak alike. The theorems know the data only; the curves are the trained model's, W(h + αv).

![the paper's own model](reproduction/ufm.png)
"""
