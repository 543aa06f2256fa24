"""Learning rates at which methods are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.config.compare_spec import CompareSpec
from pmlray.types import DesignPoint, Method, Observation

MethodCell = tuple[DesignPoint, Method]


@dataclass(frozen=True, slots=True)
class TriedRate:
    """Mean exact recall of a method on the tuning texts at one point and peak learning rate.

    low, high: the least and the largest of a run; n_runs: the runs that ended with a result. A run
    without one, as of a loss that is no number, counts as recalling nothing.
    """

    point: DesignPoint
    method: Method
    learning_rate: float
    n_runs: int
    exact_recall: float
    low: float
    high: float


def tuned_rates(
    spec: CompareSpec, observations: Sequence[Observation]
) -> Mapping[MethodCell, float]:
    """Return each method's learning rate at each point, by mean exact recall on the tuning texts.

    Ties are broken by token recall, then by the loss. A run that failed recalled nothing. Rates
    that have not been tried are ignored; without any the first rate of the file is taken.
    """
    tried, single = tuning_runs(spec, observations), len(spec.tuning.learning_rates) == 1
    rates: dict[MethodCell, float] = {}
    for point in spec.design_points():
        for method in spec.all_methods():
            known = {
                rate: _quality(spec, runs)
                for (cell, rate), runs in tried.items()
                if cell == (point, method) and not single
            }
            first = spec.tuning.learning_rates[0]
            rates[point, method] = max(known, key=known.__getitem__, default=first)
    return rates


def tuning_runs(
    spec: CompareSpec, observations: Sequence[Observation]
) -> Mapping[tuple[MethodCell, float], Sequence[Observation]]:
    """Return the runs on tuning texts, by point, method and rate, in the order of the rates."""
    tuning, points, methods = spec.tuning, spec.design_points(), spec.all_methods()
    tried: dict[tuple[MethodCell, float], list[Observation]] = {}
    for o in observations:
        of_tuning = o.sequence_id in tuning.sequences and o.seed in tuning.seeds
        of_spec = o.point in points and o.method in methods
        if of_tuning and of_spec and o.learning_rate is not None:
            tried.setdefault(((o.point, o.method), o.learning_rate), []).append(o)
    return dict(sorted(tried.items(), key=lambda item: item[0][1]))


def tried_rates(spec: CompareSpec, observations: Sequence[Observation]) -> tuple[TriedRate, ...]:
    """Return what every method recalled at every rate that was tried, in the order of the spec."""
    tried = tuning_runs(spec, observations)
    found = []
    for point in spec.design_points():
        for method in spec.all_methods():
            for (cell, rate), runs in tried.items():
                if cell == (point, method):
                    exact = [o.recall.exact for o in runs]
                    exact += [0.0] * (_n_wanted(spec) - len(runs))
                    mean, low, high = float(np.mean(exact)), min(exact), max(exact)
                    found.append(TriedRate(point, method, rate, len(runs), mean, low, high))
    return tuple(found)


def wider_rates(
    spec: CompareSpec, rates: Sequence[float], best: Sequence[float]
) -> tuple[float, ...]:
    """Return the rates to try next at a point: beyond an end of those tried, by a factor of 2.

    rates: all that every method has tried there; best: each method's best of them. None is left
    where every best is inside, or an end has been moved `tuning.widenings` times.

    Example:
        >>> wider_rates(spec, rates=(1e-2, 2e-2, 4e-2), best=(2e-2, 4e-2))
        (0.08,)
    """
    tuning = spec.tuning
    if len(tuning.learning_rates) == 1:
        return ()
    n_below = sum(rate < min(tuning.learning_rates) for rate in rates)
    n_above = sum(rate > max(tuning.learning_rates) for rate in rates)
    wider = []
    if min(rates) in best and n_below < tuning.widenings:
        wider.append(min(rates) / 2)
    if max(rates) in best and n_above < tuning.widenings:
        wider.append(max(rates) * 2)
    return tuple(wider)


def _n_wanted(spec: CompareSpec) -> int:
    return len(spec.tuning.sequences) * len(spec.tuning.seeds)


def _quality(spec: CompareSpec, runs: Sequence[Observation]) -> tuple[float, float, float]:
    n = _n_wanted(spec)
    return (
        sum(o.recall.exact for o in runs) / n,
        sum(o.recall.token for o in runs) / n,
        -float(np.mean([o.final_loss for o in runs])),
    )
