"""What a change of presence has to cost at least, by data processing.

s(x) in [0, 1] is a judge's probability of a yes to reply x. A coin that shows yes with probability
s(x) turns a reply into a yes or a no, and no such step can tell two distributions further apart
(data-processing inequality; Cover and Thomas, "Elements of Information Theory", 2006, section 2.8).
With p₀ and P the presence of plain and of steered replies, nats a reply:

    KL(plain‖steered) ≥ kl(p₀, P),   KL(steered‖plain) ≥ kl(P, p₀)
    kl(p, q) = p·ln(p/q) + (1 - p)·ln((1 - p)/(1 - q))

A judge that grades from 0 to 1 is covered, since p₀ and P are its means. So is a mean over prompts:
kl is jointly convex, so that the mean cost is at least kl of the mean presences. Both hold for the
distributions replies were drawn from, so costs are to be taken at that temperature. What top-p cuts
off is left in the costs, since without it a KL may be infinite; the limit is exact for top-p 1.

Best of n: of n plain replies the one the judge likes most. Its KL(best‖plain) is at most
ln n - (n - 1)/n, with equality where no two replies are liked alike (Stiennon et al.,
arXiv:2009.01325, appendix G.3; Beirami et al., arXiv:2401.01879, Theorem 3.1).
"""

from __future__ import annotations

import math

from scipy.optimize import brentq

EDGE = 1e-12  # nearest that presence comes to 0 and 1


def coin_divergence(p: float, q: float) -> float:
    """kl(p, q) of two coins, nats; infinite where q rules out what p allows.

    >>> round(coin_divergence(0.29, 0.63), 3)
    0.238
    """
    cost = 0.0
    for mine, other in ((p, q), (1 - p, 1 - q)):
        if mine > 0:
            cost += mine * math.log(mine / other) if other > 0 else math.inf
    return cost


def farthest_presence(before: float, cost: float, sign: int = 1, back: bool = False) -> float:
    """The presence farthest from `before` that a cost allows.

    before: in [0, 1]. cost: KL(plain‖steered), or KL(steered‖plain) if `back`, nats a reply.
    sign: +1 to increase, -1 to decrease.
    """

    def divergence(after: float) -> float:
        return coin_divergence(after, before) if back else coin_divergence(before, after)

    end = 1 - EDGE if sign > 0 else EDGE
    if cost <= 0 or sign * (before - end) >= 0:
        return before
    if divergence(end) <= cost:
        return end
    return float(brentq(lambda after: divergence(after) - cost, before, end))


def best_of_cost(n: int) -> float:
    """The most that best of n costs, KL(best‖plain) in nats a reply."""
    return math.log(n) - (n - 1) / n
