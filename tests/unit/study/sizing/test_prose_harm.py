"""Harm to prose by placement, beside a closed form of least squares and known levels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy

from pmlray.errors import DataError
from pmlray.study.sizing.prose_harm import ProseHarm
from pmlray.types import DesignPoint, Observation, PlannedRun
from tests.fakes import observe

WANTED = 3000.0
LEVELS = {"a": 0.5, "b": 0.2}


def run(place: str, seq_len: int, noise: float, key: int) -> Observation:
    """A run that stores 4 nats a token, and harms prose by its level and 0.1 per factor e."""
    point = DesignPoint(2, seq_len, 100, place)
    harm = LEVELS[place] + 0.1 * math.log(4.0 * seq_len / WANTED) + noise
    o = observe(PlannedRun(point, "sft", 0, 0, "law", f"{key:x}"), 0, 0, 0.0, 1e-3)
    return replace(o, base_loss=5.0, final_loss=1.0, prose_delta_loss=-harm)


def test_levels_and_their_doubt_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(3)
    places, lengths = ["a", "b"] * 5, [100, 200, 300, 400, 500, 600, 700, 100, 900, 250]
    runs = [
        run(place, length, 0.05 * rng.standard_normal(), i)
        for i, (place, length) in enumerate(zip(places, lengths, strict=True))
    ]
    found = ProseHarm(runs, WANTED).samples(40_000)
    x = np.log(4.0 * np.array(lengths) / WANTED)
    is_b = np.array([float(p == "b") for p in places])
    design = np.column_stack([1.0 - is_b, is_b, x])
    harm = np.array([-(o.prose_delta_loss or 0.0) for o in runs])
    beta, rss, *_ = np.linalg.lstsq(design, harm)
    free = len(runs) - 3
    cov = float(rss[0]) / free * np.linalg.inv(design.T @ design)
    for k, name in enumerate(("a", "b")):
        told = scipy.stats.t(free, beta[k], math.sqrt(cov[k, k])).ppf([0.05, 0.5, 0.95])
        assert np.quantile(found[name], [0.05, 0.5, 0.95]) == pytest.approx(told, abs=0.004)
    apart = scipy.stats.t(free, beta[0] - beta[1], math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]))
    assert np.quantile(found["a"] - found["b"], 0.05) == pytest.approx(apart.ppf(0.05), abs=0.006)


def test_runs_of_one_size_leave_the_slope_out_and_too_few_say_so() -> None:
    same = [run(place, 400, noise, i) for i, (place, noise) in enumerate(
        [("a", 0.01), ("a", -0.01), ("b", 0.02), ("b", -0.02)]
    )]  # fmt: skip
    found = ProseHarm(same, 1600.0).samples(20_000)
    assert np.median(found["a"] - found["b"]) == pytest.approx(0.3, abs=0.005)
    with pytest.raises(DataError, match=r"2 runs measured .* at 2 placements: too few"):
        ProseHarm([same[0], same[2]], WANTED)
    unmeasured = [replace(o, prose_delta_loss=None) for o in same]
    with pytest.raises(DataError, match="0 runs measured"):
        ProseHarm(unmeasured, WANTED)
