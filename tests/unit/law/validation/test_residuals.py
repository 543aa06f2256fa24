"""Residual structure, clusters left out and correlations, against plain formulas and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pmlray.law import CeilingLaw, FitOptions, PowerLaw, average_laws, fit_law, read_law_data
from pmlray.law.validation.correlation import entangled_pairs, param_correlations
from pmlray.law.validation.residuals import (
    EFFECTIVE,
    cluster_spread,
    residual_structure,
    spearman,
)
from tests.unit.law.placed_points import (
    ATTENTION,
    DOWN,
    DOWN_EARLY,
    N_LAYERS,
    placed,
    placed_data,
)

POWER = PowerLaw(238.0, 0.66, 0.56, -0.38)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
GRID = ((1.0, 2.0, 4.0, 8.0, 16.0), (1000.0, 2000.0, 4000.0, 8000.0))


def test_residuals_are_signed_and_those_of_the_points_fitted(paper_csv):
    data = read_law_data(paper_csv, 12.4).subset(np.arange(1, 70))
    # Two points made saturated: the power form does not fit them.
    final = data.final_loss.copy()
    assert np.all(final > np.log(2))
    final[[3, 40]] = 0.1
    data = replace(data, final_loss=final)
    fit = average_laws(data, ("power",)).best
    found = residual_structure(data, fit)
    kept = np.delete(np.arange(len(data)), [3, 40])
    expected = [
        data.delta_loss[i] - float(fit.law.predict(data.lora_rank[i], data.seq_len[i], 0))
        for i in kept
    ]
    np.testing.assert_allclose(found.residual, expected)
    np.testing.assert_array_equal(found.points.seq_len, data.seq_len[kept])
    censored = average_laws(data, ("power",), FitOptions(saturated="censor")).best
    assert len(residual_structure(data, censored).residual) == len(kept)


def test_the_trend_test_is_the_f_test_of_two_nested_regressions(points_of):
    """Against explicit least squares: residuals on J, and on J with the added columns."""
    noise = 0.2 * np.random.default_rng(5).standard_normal(20)
    data = points_of(POWER, noise=noise)
    fit = average_laws(data, ("power",)).best
    jac = fit.law.jacobian(data.lora_rank, data.seq_len, data.train_steps)
    predicted = fit.law.predict(data.lora_rank, data.seq_len, data.train_steps)
    residual = data.delta_loss - predicted
    # Each in units of its run's noise.
    root_w = np.sqrt(fit.weights)

    def rss(design):
        # Among the points the terms for what lies beyond them are 0.
        design = design[:, np.abs(design).max(axis=0) > 0]
        design = root_w[:, None] * design / np.abs(design).max(axis=0)
        coefficients, *_ = np.linalg.lstsq(design, root_w * residual)
        return np.sum((root_w * residual - design @ coefficients) ** 2)

    log_l = np.log(data.seq_len)
    added = {
        "lora_rank": [np.log(data.lora_rank), np.log(data.lora_rank) ** 2],
        "seq_len": [log_l, log_l**2],
        "predicted": [predicted**2, predicted**3],
    }
    trends = {t.along: t for t in residual_structure(data, fit).trends}
    assert set(trends) == set(added)  # Steps do not differ.
    for along, columns in added.items():
        small, large = rss(jac), rss(np.column_stack([jac, *columns]))
        f = (small - large) / 2 / (large / (20 - 7 - 2))
        assert trends[along].share == pytest.approx((small - large) / small, rel=1e-4)
        assert trends[along].p_value == pytest.approx(stats.f.sf(f, 2, 11), rel=1e-4)
    at = {"lora_rank": data.lora_rank, "seq_len": data.seq_len, "predicted": predicted}
    for along, axis in at.items():
        expected = stats.spearmanr(axis, residual).statistic
        assert trends[along].correlation == pytest.approx(expected)


def test_structure_is_found_where_the_form_is_wrong_and_not_where_it_is_right(points_of):
    rng = np.random.default_rng(0)
    lengths = (1000.0, 2000.0, 4000.0, 8000.0, 16000.0, 32000.0)
    noise = 0.05 * rng.standard_normal(30)
    wrong = points_of(CEILING, GRID[0], lengths, base_loss=12.4, noise=noise)
    wrong = replace(wrong, final_loss=np.full(30, 5.0))  # Past the filter.
    assert "predicted" in residual_structure(wrong, average_laws(wrong, ("power",)).best).left
    assert residual_structure(wrong, average_laws(wrong, ("ceiling",)).best).left == ()


def test_exact_or_too_few_points_leave_nothing_to_test(points_of):
    noise = 0.1 * np.random.default_rng(0).standard_normal(20)
    full = CeilingLaw(1e9, 1.0, 0.5, 0.0, 8.0, 12.0)
    few, one_rank = np.array([0, 7, 13, 18]), np.arange(8, 12)
    for form, data in (
        ("power", points_of(POWER)),
        ("power", points_of(POWER, noise=noise).subset(few)),
        ("power", points_of(POWER, noise=noise).subset(one_rank)),
        # All at the ceiling: what the prior does there is no structure of the points.
        ("ceiling", points_of(full, base_loss=12.01, noise=0.05 * noise)),
    ):
        found = fit_law(data, form, n_bootstrap=20).residuals
        assert found.trends and all(t.p_value is None for t in found.trends)
        assert found.left == ()


def test_spread_between_and_within_clusters():
    rng = np.random.default_rng(1)
    sizes = (3, 7, 5, 10)
    cluster = np.repeat(np.arange(4), sizes)
    residual = rng.standard_normal(25) + np.array([0.0, 2.0, -1.0, 0.5])[cluster]
    found = cluster_spread(residual, cluster)
    assert found is not None
    groups = [residual[cluster == c] for c in range(4)]
    expected = stats.f_oneway(*groups)
    assert found.p_value == pytest.approx(expected.pvalue)
    within = sum(float(np.sum((g - g.mean()) ** 2)) for g in groups) / 21
    assert found.within == pytest.approx(np.sqrt(within))
    n0 = (25 - sum(n * n for n in sizes) / 25) / 3
    assert found.between == pytest.approx(np.sqrt((expected.statistic - 1) * within / n0))
    many = np.repeat(np.arange(4000), 5)
    drawn = 0.3 * rng.standard_normal(4000)[many] + 0.5 * rng.standard_normal(20000)
    large = cluster_spread(drawn, many)
    assert large is not None
    assert (large.between, large.within) == pytest.approx((0.3, 0.5), abs=0.02)
    assert cluster_spread(residual, np.arange(25)) is None
    assert cluster_spread(residual, np.zeros(25, dtype=int)) is None


def test_ranks_share_ties():
    a, b = np.array([1.0, 2, 2, 3, 3, 3, 9]), np.array([4.0, 1, 1, 0, 7, 7, 2])
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(np.ones(3), b[:3]) is None


def test_close_pairs_are_named_the_closest_first(paper_csv):
    fit = average_laws(read_law_data(paper_csv, 12.4), ("ceiling",)).best
    names = fit.law.param_names
    expected = {}
    for i, first in enumerate(names):
        for j, second in enumerate(names[i + 1 :], start=i + 1):
            rho = fit.cov[i, j] / np.sqrt(fit.cov[i, i] * fit.cov[j, j])
            if abs(rho) > 0.95:
                expected[first, second] = rho
    found = entangled_pairs(fit)
    # paper.md 0.2: parameter correlations of the paper's points reach .98.
    assert ("log_coef", "len_exponent") in expected
    assert {(p.first, p.second): p.correlation for p in found} == pytest.approx(expected)
    sizes = [abs(p.correlation) for p in found]
    assert sizes == sorted(sizes, reverse=True)


def test_an_exact_fit_has_no_correlations(points_of):
    fit = average_laws(points_of(POWER), ("power",)).best
    exact = replace(fit, cov=np.zeros_like(fit.cov))
    correlation = param_correlations(exact)
    assert np.all(np.diag(correlation) == 1.0) and np.isnan(correlation[0, 1])
    assert entangled_pairs(exact) == ()


def test_ranks_of_a_reference_with_many_parameters_are_tested_below_1():
    """All-linear of every layer is the reference, of which one rank elsewhere is a small part."""
    kinds = ("attention", "mlp_in", "mlp_out")
    whole = placed("all", kinds, range(N_LAYERS))
    few = {DOWN: 1.0, DOWN_EARLY: 0.8, ATTENTION: 1.3}
    # Of equally many points the first is the reference.
    data = placed_data({whole: 1.0, **few}, 0, ranks=(1,), lengths=(256, 512, 1024, 2048))
    assert data.placements[0] == whole
    fit = average_laws(data, ("ceiling",)).best
    assert fit.law_ranks(data).max() == 1.0 and fit.law_ranks(data).min() < 0.1
    tested = {t.along: t.p_value for t in residual_structure(data, fit).trends}
    assert 0.0 <= tested[EFFECTIVE] <= 1.0
