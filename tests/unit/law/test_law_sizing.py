"""Sizes for a wanted loss reduction against a search of a dense grid, sample by sample."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import AveragedLaw, CeilingLaw, LawData, PowerLaw, average_laws
from pmlray.law.averaging import AveragedSamples
from pmlray.law.sizing import Estimate, size_for
from pmlray.types import DesignPoint

RANKS, LENGTHS, STEPS = (1, 2, 4, 8, 16), (50, 100, 200, 400, 800), (100, 200, 400)
TRUE = CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 9.0, 0.3, 200.0, True)
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
def average() -> AveragedLaw:
    data = made()
    return AveragedLaw(
        (average_laws(data, ("ceiling",)).best, average_laws(data, ("power",)).best),
        (0.6, 0.4),
        9.0,
    )


@pytest.fixture(scope="module")
def samples(average: AveragedLaw) -> AveragedSamples:
    return average.sample(made(), 60, np.random.default_rng(0))


def on_the_grid(predicted: np.ndarray, wanted: float, axis: str) -> np.ndarray:
    """Per sample (n, grid), where on DENSE the prediction reaches `wanted`: the least rank or
    steps, the greatest length."""
    found = []
    for row in predicted:
        reached = DENSE[row >= wanted]
        if axis == "seq_len":
            found.append(0.0 if not reached.size else math.inf)
            if 0 < reached.size < DENSE.size:
                found[-1] = reached.max()
        else:
            found.append(math.inf if not reached.size else 0.0)
            if 0 < reached.size < DENSE.size:
                found[-1] = reached.min()
    return np.sort(found)


def along(axis: str) -> list[np.ndarray]:
    at = {name: np.full(DENSE.size, float(getattr(POINT, name))) for name in AXES}
    at[axis] = DENSE
    return [at[name] for name in AXES]


@pytest.mark.parametrize("wanted", [-3.0, 1.5, 4.0, 8.0, 8.99, 9.5])
@pytest.mark.parametrize("axis", AXES)
def test_sizes_are_those_of_a_search_by_brute_force(
    average: AveragedLaw, samples: AveragedSamples, axis: str, wanted: float
) -> None:
    found: Estimate = getattr(size_for(average, samples, POINT, wanted), axis)
    drawn = on_the_grid(samples.predict(*along(axis)), wanted, axis)
    edge = math.floor(0.05 * (drawn.size - 1))
    [value] = on_the_grid(average.predict(*along(axis))[None], wanted, axis)
    for got, expected in (
        (found.value, value),
        (found.low, drawn[edge]),
        (found.high, drawn[drawn.size - 1 - edge]),
    ):
        if 1e-3 < got < 1e6:
            assert abs(math.log(got / expected)) <= math.log(STEP) * 1.001
        else:  # Off the grid: beyond its end as the grid says.
            assert expected in (0.0, math.inf) and (got > 1) == (expected > 1)


def test_more_than_the_base_loss_is_never_reached(
    average: AveragedLaw, samples: AveragedSamples
) -> None:
    never = size_for(average, samples, POINT, 9.5)
    assert never.lora_rank == Estimate(math.inf, math.inf, math.inf) == never.train_steps
    assert never.seq_len == Estimate(0.0, 0.0, 0.0)
    stored = json.loads(json.dumps(never.to_json(), allow_nan=False))
    assert stored["lora_rank"] == {"value": None, "low": None, "high": None}
    assert stored["seq_len"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_without_a_budget_term_no_steps_are_named() -> None:
    data = made(steps=(200,))
    average = average_laws(data, ("power", "ceiling"))
    samples = average.sample(data, 40, np.random.default_rng(0))
    found = size_for(average, samples, POINT, 4.0)
    assert found.train_steps is None and found.to_json()["train_steps"] is None
    assert 0 < found.lora_rank.low < found.lora_rank.value < found.lora_rank.high


def test_the_interval_holds_the_truth_and_grows_with_the_level(
    average: AveragedLaw, samples: AveragedSamples
) -> None:
    wide, narrow = (size_for(average, samples, POINT, 4.0, level) for level in (0.98, 0.3))
    truth = TRUE.invert_rank(400.0, 200.0, 4.0)
    assert wide.lora_rank.low < truth < wide.lora_rank.high
    assert wide.lora_rank.low < narrow.lora_rank.low < narrow.lora_rank.high < wide.lora_rank.high


def test_a_wish_that_is_no_number_is_refused(
    average: AveragedLaw, samples: AveragedSamples
) -> None:
    with pytest.raises(DataError, match="wanted delta_loss of nan"):
        size_for(average, samples, POINT, math.nan)


def test_a_law_far_from_its_ceiling_inverts_as_the_power_law() -> None:
    law = PowerLaw(20.0, 0.6, 0.5, 0.1, 0.2, 200.0, True)
    data = made(base=1e3)
    fit = average_laws(data, ("power",)).best
    alone = AveragedLaw((fit,), (1.0,))
    one = AveragedSamples(((fit, law.params[None]),))
    found = size_for(alone, one, POINT, 2.0)
    assert found.lora_rank.low == found.lora_rank.high
    assert found.lora_rank.low == pytest.approx(
        ((2.0 - 0.1) / (20.0 * 400**-0.5)) ** (1 / 0.6)
        * (200.0 / fit.law.ref_steps) ** (-0.2 / 0.6)
    )
