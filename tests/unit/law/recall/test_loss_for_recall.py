"""How surely the loss that a recall takes is known, against the closed form of alike tokens."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from pmlray.law import RecallLaw

BASE, TOKENS = 4.0, 6


@pytest.mark.parametrize("recall", [0.5, 0.99])
def test_draws_of_the_needed_loss_follow_the_parameters(recall: float) -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((4, 4)) * np.array([0.1, 0.05, 0.0, 0.0])[:, None]
    law = RecallLaw(1.2, 1.5, 0.0, 1e-6, BASE, spread @ spread.T, float(TOKENS), 9)
    drawn = law.loss_samples(recall, TOKENS, 4000, np.random.default_rng(1))
    # Alike and independent tokens are wrong with q, so that q's probit fixes the loss.
    q = 1.0 - recall ** (1.0 / TOKENS)
    half, ln_steepness = rng.multivariate_normal(law.params, law.cov, 4000).T[:2]
    x = half + NormalDist().inv_cdf(q) / np.exp(ln_steepness)
    quantiles = [0.05, 0.5, 0.95]
    expected = BASE / (1.0 + np.exp(-np.quantile(x, quantiles)))
    assert np.quantile(drawn, quantiles) == pytest.approx(expected, rel=0.06)


def test_a_law_known_exactly_leaves_no_doubt() -> None:
    law = RecallLaw(1.2, 1.5, 2.0, 0.3, BASE, np.zeros((4, 4)), float(TOKENS), 9)
    drawn = law.loss_samples(0.9, TOKENS, 5, np.random.default_rng(0))
    assert drawn == pytest.approx(law.loss_for(0.9, TOKENS))
