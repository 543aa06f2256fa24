"""Convergence of runs: would more steps lower the loss, or is a run limited by its optimisation?

Checked on pairs of unsaturated SFT runs of which one has twice the other's steps. SmolLM2-135M, 503
pairs: of those judged converged 83 % fell by less than CONVERGED_FALL, of those that did so 86 %
are judged converged. A random model of four layers, 224 pairs on each schedule: 34 of 43 and 34 of
41 where the rate is constant up to its decay; 11 of 12 and 11 of 18 with `linear`, of whose pairs
216 are judged right. There the whole run is a decay, and the fall is told 0.25 nats too large on
average: it errs towards optimisation_limited. The largest errors are runs on the plateau between
learning what kind of text it is and memorising it: no slope tells that from the end.

The gradient norm is told and changes no status. In those 448 pairs it goes with the fall by a rank
correlation of 0.51 to 0.82, the slope alone by 0.87 to 0.94, and both together predict no better
than the slope (cross-validated log loss 0.219, 0.080, 0.114 and 0.049 without, 0.215, 0.083, 0.108
and 0.042 with it, the four sets apart). Of MemFT's runs it says nothing: their gradient is that of
the few tokens that still carry weight, and their loss is not what they lower.

Steps are counted by their learning rate: the dose R(s) is the sum of rate / peak rate over the
first s steps, so that the constant part and the decay of a run are on one axis, and a curve's fall
per unit of dose is its speed. What the decay lowers is not taken for itself: it counts as the speed
of that part, as far as its dose goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray

Status = Literal["converged", "optimisation_limited", "saturated", "diverged"]
Schedule = Literal["warmup_constant_decay", "linear"]

# A run is converged when twice its steps would lower its loss by less, nats per token.
CONVERGED_FALL = 0.2
# Speed follows dose^-power within these: it grows at most in proportion to the dose, as runs that
# have just begun to memorise do, and dies out at most as fast as its square.
POWERS = (-1.0, 2.0)
# Nats per token.
NOTHING_LEFT = 0.02
MIN_POINTS = 3


@dataclass(frozen=True, slots=True)
class Certificate:
    """Effect of more steps on a run.

    `slope`: how much further the loss would fall with twice the steps, nats per token; NaN for a
    run that diverged.
    """

    status: Status
    slope: float
    reason: str


def certify(
    curve: Sequence[tuple[int, float]],
    train_steps: int,
    *,
    schedule: Schedule,
    warmup_steps: int,
    decay_share: float,
    stop_loss: float,
    grad_norm: float | None = None,
) -> Certificate:
    """Certify one run from its curve.

    curve: (step, loss) after that many steps, from step 0 to the end, nats per token; train_steps:
    the run's budget, of which an early stop may have spared some; schedule, warmup_steps,
    decay_share, stop_loss: its recipe's; grad_norm: as in `Observation`, told in the reason.
    DataError when the curve has fewer than MIN_POINTS points.
    """
    if len(curve) < MIN_POINTS:
        raise DataError(
            f"a curve of {len(curve)} points has no slope; it needs at least {MIN_POINTS}"
        )
    losses = [loss for _, loss in curve]
    base, final = losses[0], losses[-1]
    if not all(map(math.isfinite, losses)) or final > base + CONVERGED_FALL:
        return Certificate("diverged", math.nan, f"the loss went from {base:.4g} to {final:.4g}")
    end = curve[-1][0]
    decay = round(decay_share * train_steps)
    done = _doses(end, schedule, warmup_steps, decay, train_steps)
    twice = 2 * train_steps
    doubled = _doses(twice, schedule, warmup_steps, round(decay_share * twice), twice)
    told = _expected_fall(done[[step for step, _ in curve]], np.asarray(losses), doubled[-1])
    slope = min(max(told, 0.0), max(final, 0.0))
    fall = f"twice the steps would lower the loss by {slope:.3g} nats per token"
    if grad_norm is not None:
        fall += f"; the gradient norm before the decay was {grad_norm:.2g}"
    if final <= max(stop_loss, NOTHING_LEFT):
        return Certificate("saturated", slope, f"only {final:.3g} nats per token are left")
    if slope < CONVERGED_FALL:
        return Certificate("converged", slope, fall)
    return Certificate("optimisation_limited", slope, fall)


def _doses(end: int, schedule: Schedule, warmup_steps: int, decay: int, budget: int) -> FloatArray:
    """Return R(s) for s = 0 to `end`; a run that ends before its budget has decayed by then."""
    step = np.arange(end)
    if schedule == "linear":
        left = (budget - step) / max(1, budget - warmup_steps)
    else:
        left = (end - step) / max(1, decay)
    rates = np.minimum(np.minimum((step + 1) / max(1, warmup_steps), left), 1.0)
    return np.concatenate(([0.0], np.cumsum(rates)))


def _expected_fall(dose: FloatArray, loss: FloatArray, until: float) -> float:
    """Return the fall of the loss from the last dose to `until`, nats per token, if its speed keeps
    its trend.

    The speeds of the last two stretches of the curve, at their middles, fix v(R) = v (R / m)^-p.
    """
    speed = -np.diff(loss) / np.diff(dose)
    middle = (dose[1:] + dose[:-1]) / 2
    if speed[-1] <= 0:
        return 0.0
    power = POWERS[0]
    if speed[-2] > 0:
        told = -math.log(speed[-1] / speed[-2]) / math.log(middle[-1] / middle[-2])
        power = min(max(told, POWERS[0]), POWERS[1])
    from_, to = dose[-1] / middle[-1], until / middle[-1]
    q = 1.0 - power
    area = (to**q - from_**q) / q if q else math.log(to / from_)
    return float(speed[-1] * middle[-1] * area)
