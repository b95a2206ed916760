"""What the law of the bounded remainder foretells, against passes of a random model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from calibrate.engine.cross_entropy import delta_ce, measure_steered
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.foretold import foretell

UNIT, TOKENS = 1.0, (6, 9, 11)


@pytest.mark.parametrize("self_sampled", [True, False])
def test_the_scale_is_that_of_the_divergence_whatever_cross_entropy_does(
    self_sampled, sequences, monkeypatch
):
    """Labels that the model finds too likely make ΔCE fall on one side: no KL does."""
    loaded = tiny.loaded("gpt2")
    values = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    site = Site((SteeringVector(values, 1, residual_norm=5.0),))
    own, run = (
        run_unsteered(loaded, Corpus(tuple(sequences), kind), [1]) for kind in (True, self_sampled)
    )
    divergences = {
        share: delta_ce(loaded, own, site, share * UNIT).value for share in (-2.0, -1.0, 1.0, 2.0)
    }
    slope = 0.0 if self_sampled else -2 * divergences[1.0]
    rises = {share: rise + share * slope for share, rise in divergences.items()}
    mass = measure_steered(loaded, run, site, 0.0, TOKENS).mass.value
    found = foretell(loaded, run, site, UNIT, (0, 3), rises, mass)
    assert found.law.rise(2 * UNIT, found.read_out) == pytest.approx(divergences[2.0], rel=1e-2)
    strengths, asked = UNIT * np.array([-1.0, 0.5, 2.0]), []

    def counted(residuals):
        asked.append(len(residuals))
        return found.read_out(residuals)

    monkeypatch.setattr("calibrate.laws.remainder.ROWS", 8)
    costs, masses = replace(found, read_out=counted).curves(strengths, TOKENS)
    assert max(asked) == 8
    truth = [measure_steered(loaded, own, site, float(at), TOKENS).mass.value for at in strengths]
    assert masses == pytest.approx(truth, rel=0.01)
    if self_sampled:
        assert costs[[0, 2]] == pytest.approx([rises[-1.0], rises[2.0]], rel=1e-2)
    else:
        assert costs is None
