"""Sizes for a wanted loss reduction against a search of a dense grid, sample by sample."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import AveragedSamples, CeilingLaw, Law, LawData, PowerLaw, average_laws
from pmlray.law.fitting.averaging import Drawn
from pmlray.law.fitting.base_trend import BaseTrend
from pmlray.law.sizing import Estimate, size_for
from pmlray.types import DesignPoint

RANKS, LENGTHS, STEPS = (1, 2, 4, 8, 16), (50, 100, 200, 400, 800), (100, 200, 400)
TRUE = CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 9.0, 0.3, 200.0, True)
BASELESS = BaseTrend(math.inf, 0.0, 0.0, math.inf, 0.0, 1, known=True)
POINT = DesignPoint(4, 400, 200)
AXES = ("lora_rank", "seq_len", "train_steps")
DENSE = np.geomspace(1e-3, 1e6, 4001)
STEP = DENSE[1] / DENSE[0]


def made(base: float = 9.0, steps: tuple[int, ...] = STEPS) -> LawData:
    r, n, t = (x.ravel().astype(float) for x in np.meshgrid(RANKS, LENGTHS, steps))
    noise = 0.08 * np.random.default_rng(0).standard_normal(r.size)
    delta = np.minimum(TRUE.predict(r, n, t) + noise, base - 1e-3)
    base_N = np.full(r.size, base)
    return LawData(r, n, t, delta, base_N, base_N - delta, np.arange(r.size) % 6)


@pytest.fixture(scope="module")
def samples() -> AveragedSamples:
    both = replace(average_laws(made(), ("ceiling", "power")), weights=(0.6, 0.4))
    return both.sample(60, np.random.default_rng(0))


# No adapter has a smaller rank, none trains for less than a step; beyond these nobody goes.
LEAST = {"lora_rank": 1.0, "seq_len": 0.0, "train_steps": 1.0}
MOST = {"lora_rank": 2.0**16, "seq_len": 2.0**24, "train_steps": 2.0**30}


def on_the_grid(predicted: np.ndarray, wanted: float, axis: str) -> np.ndarray:
    """Per sample (n, grid), where on DENSE the prediction passes `wanted`, on its way up with rank
    or steps and down with length."""
    found = []
    for row in predicted:
        reached = row >= wanted
        if axis == "seq_len":
            at = np.flatnonzero(reached[:-1] & ~reached[1:])
            never, always = 0.0, math.inf
        else:
            at = 1 + np.flatnonzero(~reached[:-1] & reached[1:])
            never, always = math.inf, 0.0
        passed = DENSE[at[-1]] if at.size else always if reached.any() else never
        found.append(math.inf if passed > MOST[axis] else max(passed, LEAST[axis]))
    return np.sort(found)


def along(axis: str) -> list[np.ndarray]:
    at = {name: np.full(DENSE.size, float(getattr(POINT, name))) for name in AXES}
    at[axis] = DENSE
    return [at[name] for name in AXES]


@pytest.mark.parametrize("wanted", [-3.0, 1.5, 4.0, 8.0, 8.7, 9.5])
@pytest.mark.parametrize("axis", AXES)
def test_sizes_are_those_of_a_search_by_brute_force(
    samples: AveragedSamples, axis: str, wanted: float
) -> None:
    found: Estimate = getattr(size_for(samples, POINT, wanted), axis)
    drawn = on_the_grid(samples.predict(*along(axis)), wanted, axis)
    edge = math.floor(0.05 * (drawn.size - 1))
    for got, expected in (
        (found.value, drawn[(drawn.size - 1) // 2]),
        (found.low, drawn[edge]),
        (found.high, drawn[drawn.size - 1 - edge]),
    ):
        if math.isfinite(expected) and expected > 1e-3:
            assert abs(math.log(got / expected)) <= math.log(STEP) * 1.001
        else:
            assert got == expected or (got > 1e6 and expected == math.inf)


def test_more_than_the_base_loss_is_never_reached(samples: AveragedSamples) -> None:
    never = size_for(samples, POINT, 9.5)
    assert never.lora_rank == Estimate(math.inf, math.inf, math.inf) == never.train_steps
    assert never.seq_len == Estimate(0.0, 0.0, 0.0)
    stored = json.loads(json.dumps(never.to_json(), allow_nan=False))
    assert stored["lora_rank"] == {"value": None, "low": None, "high": None}
    assert stored["seq_len"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_without_a_budget_term_no_steps_are_named() -> None:
    data = made(steps=(200,))
    samples = average_laws(data, ("power", "ceiling")).sample(40, np.random.default_rng(0))
    found = size_for(samples, POINT, 4.0)
    assert found.train_steps is None and found.to_json()["train_steps"] is None
    assert 0 < found.lora_rank.low < found.lora_rank.value < found.lora_rank.high


def test_the_interval_holds_the_truth_and_grows_with_the_level(samples: AveragedSamples) -> None:
    wide, narrow = (size_for(samples, POINT, 4.0, level) for level in (0.98, 0.3))
    truth = TRUE.invert_rank(400.0, 200.0, 4.0)
    assert wide.lora_rank.low < truth < wide.lora_rank.high
    assert wide.lora_rank.low < narrow.lora_rank.low < narrow.lora_rank.high < wide.lora_rank.high


def test_a_wish_that_is_no_number_is_refused(samples: AveragedSamples) -> None:
    with pytest.raises(DataError, match="wanted delta_loss of nan"):
        size_for(samples, POINT, math.nan)


def certain(law: Law) -> AveragedSamples:
    """A law that is known without doubt, of no base loss."""
    fit = replace(average_laws(made(), ("power",)).best, law=law)
    drawn = Drawn(fit, law.params[None], np.array([fit.sigma]))
    return AveragedSamples((drawn,), BASELESS, np.zeros(1))


def test_a_law_far_from_its_ceiling_inverts_as_the_power_law() -> None:
    law = PowerLaw(20.0, 0.6, 0.5, 0.1, 0.2, 200.0, True)
    found = size_for(certain(law), POINT, 2.0)
    assert found.lora_rank.low == found.lora_rank.high
    assert found.lora_rank.low == pytest.approx(((2.0 - 0.1) / (20.0 * 400**-0.5)) ** (1 / 0.6))


def test_no_adapter_is_smaller_than_rank_1_and_nothing_beyond_reach_is_named() -> None:
    law = PowerLaw(20.0, 0.6, 0.5, 0.1, 0.2, 200.0, True)
    assert law.invert_rank(400.0, 200.0, 0.2) < 0.05
    assert size_for(certain(law), POINT, 0.2).lora_rank == Estimate(1.0, 1.0, 1.0)
    assert math.isfinite(law.invert_rank(400.0, 200.0, 900.0))
    beyond = size_for(certain(law), POINT, 900.0)
    assert beyond.lora_rank == Estimate(math.inf, math.inf, math.inf) == beyond.train_steps
    assert 0.0 < beyond.seq_len.value < 1.0
    assert size_for(certain(law), POINT, 0.1001).seq_len.value == math.inf
