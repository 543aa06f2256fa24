"""Learning rates at which methods are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pmlray.config.compare_spec import CompareSpec
from pmlray.types import DesignPoint, Method, Observation

MethodCell = tuple[DesignPoint, Method]


def tuned_rates(
    spec: CompareSpec, observations: Sequence[Observation]
) -> Mapping[MethodCell, float]:
    """Return each method's learning rate at each point, by mean exact recall on the tuning texts.

    Ties are broken by token recall, then by the loss. Rates that have not been tried, or failed,
    are ignored; without any the first rate of the file is taken.
    """
    tuning, tried = spec.tuning, tuning_runs(spec, observations)
    rates: dict[MethodCell, float] = {}
    for point in spec.design_points():
        for method in spec.all_methods():
            cell = (point, method)
            known = {
                rate: _quality(tried[cell, rate])
                for rate in tuning.learning_rates
                if (cell, rate) in tried
            }
            rates[cell] = max(known, key=known.__getitem__, default=tuning.learning_rates[0])
    return rates


def tuning_runs(
    spec: CompareSpec, observations: Sequence[Observation]
) -> Mapping[tuple[MethodCell, float], Sequence[Observation]]:
    """Return the runs on tuning texts, by point, method and rate."""
    tuning, points, methods = spec.tuning, spec.design_points(), spec.all_methods()
    tried: dict[tuple[MethodCell, float], list[Observation]] = {}
    for o in observations:
        of_tuning = o.sequence_id in tuning.sequences and o.seed in tuning.seeds
        of_spec = o.point in points and o.method in methods
        if of_tuning and of_spec and o.learning_rate in tuning.learning_rates:
            tried.setdefault(((o.point, o.method), o.learning_rate), []).append(o)
    return tried


def _quality(runs: Sequence[Observation]) -> tuple[float, float, float]:
    return (
        float(np.mean([o.recall.exact for o in runs])),
        float(np.mean([o.recall.token for o in runs])),
        -float(np.mean([o.final_loss for o in runs])),
    )
