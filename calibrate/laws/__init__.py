"""The paper's laws of the strength α, fitted to a few passes and tested on others.

Taimeskhanov, Vaiter, Garreau, "Towards Understanding Steering Strength", arXiv:2602.02712:

    Theorem 3.3      p_α(z) ∝ p₀(z)·exp(α·M(z))          one token: rises, peaks, falls  `tokens`
    Theorem 3.6      logit F(α) = r + ν(α)               a concept's tokens: a sigmoid   `formulas`
    Theorem 3.8      ΔCE(α) = ½·c·α² + o(α²)             cross-entropy near 0            `formulas`
    Proposition 4.1  logits → norm(±v)·W_Uᵀ, ΔCE → P±    cross-entropy far out           `formulas`

M(z) is a token's log-odds: how fast steering raises its logit. They are theorems about the paper's
simple model. In a transformer M is ∂logit/∂α at α = 0 (`log_odds`), and an effective dose a(α)
takes the place of α (`dose`); `remainder` lets the direction turn in which logits move. `presence`
fits what judges read in replies. `pilot` fits the laws to a few passes, with intervals from
`bootstrap`; `curves` and `plots` put them beside what is measured far beyond the budget.
"""
