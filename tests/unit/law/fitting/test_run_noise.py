"""The noise of runs against dense covariances, its definition, and draws of it."""

from __future__ import annotations

import numpy as np
import pytest

from pmlray.law.fitting.run_noise import SHARED, RunNoise, Whitening, whitening

RNG = np.random.default_rng(0)
# Two texts of several points, one of two, and three points that are alone in theirs.
CLUSTER = np.array([5, 2, 5, 9, 2, 7, 5, 2, 8, 7, 6, 2])
UNIT, FLOOR = RNG.uniform(0.2, 4.0, CLUSTER.size), RNG.uniform(0.05, 0.3, CLUSTER.size)
SIGMAS = np.array([0.02, 0.08, 0.5])


def dense(sigma: float) -> np.ndarray:
    """SHARED of the variance by level is common to a text, the rest and the floor are a run's."""
    level = sigma * UNIT
    same = CLUSTER[:, None] == CLUSTER[None, :]
    cov = SHARED * np.outer(level, level) * same
    np.fill_diagonal(cov, level**2 + FLOOR**2)
    return cov


@pytest.fixture
def noise() -> Whitening:
    return whitening(UNIT, FLOOR, SIGMAS, CLUSTER)


def test_whitened_products_are_those_of_the_inverse_covariance(noise: Whitening) -> None:
    values = RNG.standard_normal((SIGMAS.size, CLUSTER.size))
    columns = RNG.standard_normal((SIGMAS.size, CLUSTER.size, 4))
    white, white_columns = noise.whiten(values), noise.whiten(columns)
    assert white.shape == values.shape and white_columns.shape == columns.shape
    for b, sigma in enumerate(SIGMAS):
        cov = dense(sigma)
        # Roots differ by a rotation, so that products are compared.
        root = np.linalg.solve(np.linalg.cholesky(cov), np.eye(len(cov)))
        expected, of_columns = root @ values[b], root @ columns[b]
        assert white[b] @ white[b] == pytest.approx(expected @ expected)
        np.testing.assert_allclose(white_columns[b].T @ white[b], of_columns.T @ expected)
        np.testing.assert_allclose(white_columns[b].T @ white_columns[b], of_columns.T @ of_columns)


def test_the_determinant_is_that_of_the_covariance(noise: Whitening) -> None:
    expected = [0.5 * np.linalg.slogdet(dense(sigma))[1] for sigma in SIGMAS]
    np.testing.assert_allclose(noise.log_det(), expected)


def test_drawn_noise_has_the_covariance() -> None:
    n = 40_000
    drawn = whitening(UNIT, FLOOR, np.full(n, 0.5), CLUSTER).draw(np.random.default_rng(1))
    cov = dense(0.5)
    size = np.sqrt(np.diag(cov))
    # Each entry of n draws is known to 1 / sqrt(n) of the product of the sizes, or twice that.
    apart = np.abs(drawn.T @ drawn / n - cov) / np.outer(size, size)
    assert apart.max() < 5 * np.sqrt(2.0 / n)
    assert np.abs(drawn.mean(axis=0) / size).max() < 5 / np.sqrt(n)


def test_some_of_the_problems_have_their_own_noise(noise: Whitening) -> None:
    values = RNG.standard_normal((2, CLUSTER.size))
    rows = np.array([2, 0])
    expected = whitening(UNIT, FLOOR, SIGMAS[rows], CLUSTER).whiten(values)
    np.testing.assert_array_equal(noise.rows(rows).whiten(values), expected)


def test_points_of_texts_of_their_own_are_independent() -> None:
    alone = whitening(UNIT, FLOOR, SIGMAS, np.arange(CLUSTER.size))
    values = RNG.standard_normal((SIGMAS.size, CLUSTER.size))
    sd = np.hypot(SIGMAS[:, None] * UNIT, FLOOR)
    np.testing.assert_allclose(alone.whiten(values), values / sd)
    np.testing.assert_allclose(alone.log_det(), np.log(sd).sum(axis=1))


def test_noise_grows_with_what_is_memorised_and_ends_with_saturation() -> None:
    noise = RunNoise(0.1, 10.0, 2.0)
    # Half-way to the base loss hardly anything is saturated.
    assert float(noise.sd(5.0)) == pytest.approx(np.hypot(0.1 * 3.0, 0.1), rel=0.02)
    # No run is without the floor of 1 % of the base loss.
    for saturated in (10.0, 11.0, 1e3):
        assert float(noise.sd(saturated)) == pytest.approx(0.1)
    # Below the offset noise stays that of a share of 5 % memorised.
    assert [noise.sd(1.0), noise.sd(-3.0)] == pytest.approx([np.hypot(0.05, 0.1)] * 2, rel=1e-5)
    # What a ceiling of sharpness 6 leaves of a relative change of its z.
    z = 9.0
    level = z / (1 + (z / 10.0) ** 6) ** (1 / 6)
    left = (1 + (z / 10.0) ** 6) ** (-7 / 6)
    assert float(noise.unit(level)) == pytest.approx((level - 2.0) * left)


def test_without_a_base_loss_nothing_saturates() -> None:
    noise = RunNoise(0.1, 10.0, 2.0, capped=False)
    np.testing.assert_allclose(noise.unit([5.0, 10.0, 40.0]), [3.0, 8.0, 38.0])


def test_a_runs_own_base_loss_says_how_near_it_is_to_it() -> None:
    noise = RunNoise(0.1, 10.0, 0.0)
    at_its_end, not_yet = noise.unit([8.0, 8.0], [8.0, 16.0])
    assert at_its_end == 0.0 and not_yet == pytest.approx(8.0, rel=0.02)


def test_drawn_noise_does_not_depend_on_what_texts_are_called() -> None:
    renamed = (7 * CLUSTER + 3) % 11
    assert np.unique(renamed).size == np.unique(CLUSTER).size
    drawn = [
        whitening(UNIT, FLOOR, SIGMAS, cluster).draw(np.random.default_rng(0))
        for cluster in (CLUSTER, renamed)
    ]
    np.testing.assert_array_equal(*drawn)


def test_many_texts_take_no_room_of_their_own() -> None:
    """The noise of n points in n / 2 texts is held in arrays of n, not of n times its texts."""
    n = 4000
    noise = whitening(np.ones(n), np.full(n, 0.1), np.array([0.3]), np.arange(n) // 2)
    held = (noise.own_BN, noise.shared_BN, noise.member_M, noise.text_M, noise.first_C)
    assert max(array.size for array in held) <= n
    values = RNG.standard_normal((1, n))
    of_two = whitening(np.ones(2), np.full(2, 0.1), np.array([0.3]), np.zeros(2, dtype=int))
    pairs = [of_two.whiten(values[:, i : i + 2]) for i in range(0, 100, 2)]
    np.testing.assert_allclose(noise.whiten(values)[:, :100], np.concatenate(pairs, axis=1))
