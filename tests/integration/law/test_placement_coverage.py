"""What a law of several placements promises of its intervals: many fits each."""

from __future__ import annotations

import numpy as np
import pytest

from pmlray.law import Placement, average_laws
from tests.unit.law.placed_points import PER_LAYER, placed, placed_data

pytestmark = pytest.mark.slow

REPEATS = 30
PLACES = (
    placed("block 20", ("mlp_in", "mlp_out"), (20,)),
    placed("down 20", ("mlp_out",), (20,)),
    placed("down 5", ("mlp_out",), (5,)),
    placed("down 28", ("mlp_out",), (28,)),
    placed("attention 20", ("attention",), (20,)),
    placed("attention of four", ("attention",), (5, 12, 20, 28)),
    placed("linear 20", tuple(PER_LAYER), (20,)),
)
UNSEEN = (
    placed("linear 5", tuple(PER_LAYER), (5,)),
    placed("gate and up 12", ("mlp_in",), (12,)),
    placed("attention 28", ("attention",), (28,)),
    placed("down of three", ("mlp_out",), (3, 14, 26)),
)
EVERY = (*PLACES, *UNSEEN)
N = len(PLACES)


def log_worth(placement: Placement, kinds: dict[str, float], slope: float, spread: float) -> float:
    """log of the sum of sites' worths by their shares, drawn up anew."""
    total = sum(site.params_per_rank for site in placement.sites)
    depths = np.array([site.depth for site in placement.sites], dtype=float)
    worth = sum(
        site.params_per_rank / total * np.exp(kinds[site.kind] + slope * (2 * depth - 1))
        for site, depth in zip(placement.sites, depths, strict=True)
    )
    return float(np.log(worth)) + spread * float(np.std(depths)) * 12**0.5


@pytest.mark.parametrize("size", [0.0, 1.0, 2.5])
def test_worths_lie_within_their_intervals_as_often_as_these_say(size: float) -> None:
    """Whatever places differ by: nothing, what is believed beforehand, or much more."""
    held, held_unseen, widths = [], [], []
    rng = np.random.default_rng(3)
    for seed in range(REPEATS):
        kinds = dict(zip(PER_LAYER, size * 0.3 * rng.standard_normal(3), strict=True))
        slope, spread = size * np.array([0.2, 0.3]) * rng.standard_normal(2)
        own = size * 0.25 * rng.standard_normal(len(EVERY))
        logs = [log_worth(p, kinds, slope, spread) for p in EVERY] + own
        truth = logs - logs[0]
        data = placed_data(dict(zip(PLACES, np.exp(truth[:N]), strict=True)), seed)
        samples = average_laws(data, ("ceiling",)).sample(100, rng)
        drawn = np.stack([samples.log_worth(p) for p in EVERY])
        low, high = np.quantile(drawn, [0.05, 0.95], axis=1)
        inside = (low <= truth) & (truth <= high)
        held.append(inside[1:N])
        held_unseen.append(inside[N:])
        widths.append((high - low)[[1, -1]])
    # Places of a repeat err together: 30 repeats at 0.87 have a standard error of about 0.03.
    assert np.mean(held) >= 0.8, np.mean(held, axis=0)
    assert np.mean(held_unseen) >= 0.78, np.mean(held_unseen, axis=0)
    # Intervals of any width would do so too.
    seen, unseen = np.median(widths, axis=0)
    assert seen < 0.35 and seen < unseen < (0.8, 1.7, 3.5)[(0.0, 1.0, 2.5).index(size)]
