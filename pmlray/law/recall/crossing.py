"""Crossing of p = 0.5 by tokens during training: the transition in time.

Shapes: S steps at which a run's tokens are known, l tokens of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
from scipy.special import logit

from pmlray.law.data import BoolArray, FloatArray, IntArray
from pmlray.law.recall.data import TokenRun

HALF = 0.5
# p is clipped at this distance from 0 and 1, where it says little about when it passed 0.5.
CLIP = 1e-4
# Fewest tokens that cross for a rank correlation.
LEAST_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Crossings:
    """Steps at which the tokens of some runs passed p = 0.5 for good, all runs together.

    `crossed`: tokens that began at or below 0.5 and ended above, of `n_tokens`; `lost`: those that
    were above at some step and ended at or below. `early`, `middle` and `late`: quartiles of the
    step at which those that crossed did, as a share of their run's steps. `by_base_p`, `by_place`:
    Spearman's correlation of that step with p before training and with the place in the record,
    within runs, averaged over the tokens; None where no run has enough tokens that crossed.
    """

    n_runs: int
    n_tokens: int
    crossed: int
    lost: int
    early: float
    middle: float
    late: float
    by_base_p: float | None
    by_place: float | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)


def token_table(run: TokenRun) -> tuple[IntArray, FloatArray]:
    """Return the steps (S,) with known tokens, the run's end the last, and their p (S, l)."""
    o = run.observation
    steps = [step for step, _ in o.token_p_curve]
    return (
        np.array([*steps, o.curve[-1][0]], dtype=np.int64),
        np.array([*(p for _, p in o.token_p_curve), o.token_p]),
    )


def crossing_steps(steps: IntArray, p_SL: FloatArray) -> FloatArray:
    """Return the step (l,) from which each token's p stays above 0.5: 0 where it always was, inf
    where it is not at the end.

    Between two known steps the logit of p is taken as linear in log(1 + step).
    """
    above = p_SL > HALF
    time = np.log1p(steps.astype(float))
    found = np.full(p_SL.shape[1], np.inf)
    found[above.all(axis=0)] = 0.0
    z = logit(np.clip(p_SL, CLIP, 1.0 - CLIP))
    for token in np.flatnonzero(above[-1] & ~above.all(axis=0)):
        last = int(np.flatnonzero(~above[:, token])[-1])
        before, after = z[last, token], z[last + 1, token]
        at = time[last] - before / (after - before) * (time[last + 1] - time[last])
        found[token] = np.expm1(at)
    return found


def measure_crossings(runs: Sequence[TokenRun]) -> Crossings | None:
    """Return the crossings of the runs that kept p of their tokens during training; None without
    any such run, or where no token crossed."""
    shares: list[FloatArray] = []
    n_tokens, lost = 0, 0
    by_p: list[tuple[float, int]] = []
    by_place: list[tuple[float, int]] = []
    known = [run for run in runs if run.observation.token_p_curve]
    for run in known:
        steps, p_SL = token_table(run)
        step = crossing_steps(steps, p_SL)
        chosen = np.isfinite(step) & (step > 0)
        n_tokens += step.size
        lost += int(((p_SL > HALF).any(axis=0) & np.isinf(step)).sum())
        shares.append(step[chosen] / steps[-1])
        by_p += _order(step, p_SL[0], chosen)
        by_place += _order(step, run.position.astype(float), chosen)
    crossed = np.concatenate(shares) if shares else np.array([])
    if not crossed.size:
        return None
    early, middle, late = np.quantile(crossed, [0.25, 0.5, 0.75]).tolist()
    return Crossings(
        *(len(known), n_tokens, crossed.size, lost, early, middle, late),
        _mean(by_p),
        _mean(by_place),
    )


def _order(step: FloatArray, other: FloatArray, chosen: BoolArray) -> list[tuple[float, int]]:
    """Return Spearman's correlation of one run with its number of tokens; empty where it is
    undefined."""
    x, y = step[chosen], other[chosen]
    if x.size < LEAST_TOKENS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return []
    return [(float(np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1]), x.size)]


def _mean(found: Sequence[tuple[float, int]]) -> float | None:
    if not found:
        return None
    return float(np.average([r for r, _ in found], weights=[n for _, n in found]))
