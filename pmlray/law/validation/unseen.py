"""Errors of the law at points that its fit did not see.

Only points that were not saturated count: of the others any law is right.

Shapes: N points, B groups left out, K cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import BoolArray, FloatArray, IntArray, LawData, informative_points
from pmlray.law.fitting.averaging import AveragedLaw, average_laws
from pmlray.law.fitting.fit import FitOptions
from pmlray.law.fitting.posterior import SIGMAS
from pmlray.law.fitting.run_noise import whitening
from pmlray.law.forms.protocol import Form

# Fewest held-out cells for a mean error, and fewest fitted cells for a prediction.
LEAST_CELLS = 3
LEAST_FITTED = 4
# Most groups that are left out one at a time: each takes a fit to all other points.
MOST_LEFT_OUT = 200
# Noise, in base losses, of a point that is left out.
LEFT_OUT = 1e6
NORMAL_90 = 1.645


@dataclass(frozen=True, slots=True)
class UnseenError:
    """Mean |predicted - measured| / |measured| over cells that were held out, a fraction, with the
    90 % interval of that mean, from the spread between the cells."""

    error: float
    low: float
    high: float
    n_cells: int


@dataclass(frozen=True)
class UnseenErrors:
    """Errors at points held out, computed on first access: a search refits its law after every
    pack, and needs few of them.

    `average` is the law of `data` by these `forms` and `options`. Each error is None where too few
    points are left.
    """

    data: LawData
    average: AveragedLaw
    forms: tuple[Form, ...]
    options: FitOptions

    @cached_property
    def heldout(self) -> UnseenError | None:
        """Error at cells left out one at a time."""
        errors = heldout_errors(self.average, self.data, self.data.cells())
        return unseen_error(errors, self.data)

    @cached_property
    def new_sequence(self) -> UnseenError | None:
        """Error at (sequence, seed) pairs left out; None where every point has its own."""
        if np.unique(self.data.cluster).size == len(self.data):
            return None
        errors = heldout_errors(self.average, self.data, self.data.cluster)
        return unseen_error(errors, self.data)

    @cached_property
    def extrapolation(self) -> UnseenError | None:
        """Error at the largest rank and length, of the law fitted to the smaller ones."""
        errors = extrapolation_errors(self.data, self.forms, self.options)
        return unseen_error(errors, self.data)


def unseen_error(error_N: FloatArray, data: LawData) -> UnseenError | None:
    """Return the mean over cells of the relative errors (N,), NaN where a point was not predicted;
    None with fewer than LEAST_CELLS cells."""
    known = ~np.isnan(error_N)
    _, cell, counts = np.unique(data.cells()[known], return_inverse=True, return_counts=True)
    if counts.size < LEAST_CELLS:
        return None
    mean_K = np.bincount(cell.reshape(-1), error_N[known]) / counts
    middle = float(mean_K.mean())
    half = NORMAL_90 * float(mean_K.std(ddof=1)) / math.sqrt(counts.size)
    return UnseenError(middle, max(middle - half, 0.0), middle + half, counts.size)


def extrapolation_errors(data: LawData, forms: Sequence[Form], options: FitOptions) -> FloatArray:
    """Return the relative error (N,) of each point at the largest length of its placement, by the
    law of the smaller ones, and at the largest rank likewise; of a point that is at both, the
    larger."""
    errors = np.full(len(data), np.nan)
    informative = informative_points(data)
    for axis in (data.seq_len, data.lora_rank):
        beyond = _largest(axis, data.placement)
        below = data.subset(~beyond)
        if np.unique(below.subset(informative[~beyond]).cells()).size < LEAST_FITTED:
            continue
        if min(np.unique(below.plain_rank).size, np.unique(below.seq_len).size) < 2:
            continue
        try:
            law = average_laws(below, forms, options)
        except FitError:
            continue
        at = beyond & informative
        points = data.subset(at)
        predicted = law.predict_points(points)
        errors[at] = np.fmax(errors[at], _share(predicted, points.delta_loss))
    return errors


def heldout_errors(average: AveragedLaw, data: LawData, groups: IntArray) -> FloatArray:
    """Return the relative error (N,) of each point by the likeliest law fitted without its group.
    groups: an id a point, (N,); of more than MOST_LEFT_OUT that many are drawn at random, always
    the same.

    The form, the size of the noise and the middle of the points stay those of all points. NaN for
    saturated points, for those that are never left out, and where too few cells remain.
    """
    found = average.posteriors[0]
    model, sigma = found.model, SIGMAS[[int(np.argmax(found.weight_G))]]
    ids, group = np.unique(groups, return_inverse=True)
    left_out = np.arange(ids.size)
    if ids.size > MOST_LEFT_OUT:
        left_out = np.random.default_rng(0).choice(ids.size, MOST_LEFT_OUT, replace=False)
    out_BN = group.reshape(-1)[None] == left_out[:, None]
    informative, cells = informative_points(data), data.cells()
    able = [np.unique(cells[~out & informative]).size >= LEAST_FITTED for out in out_BN]
    out_BN = out_BN[np.array(able, dtype=bool)]
    errors = np.full(len(data), np.nan)
    if not len(out_BN):
        return errors
    floor_BN = found.floor_N + out_BN * LEFT_OUT * found.noise.base_loss
    noise = whitening(found.unit_N, floor_BN, np.repeat(sigma, len(out_BN)), data.cluster)
    start = np.repeat(found.theta_GP[[int(np.argmax(found.weight_G))]], len(out_BN), axis=0)
    y = np.broadcast_to(data.delta_loss, out_BN.shape)
    theta = model.solve(start, y, np.broadcast_to(model.mean_P, start.shape), noise).theta_BP
    predicted_BN, _ = model.values(theta)
    for out, predicted in zip(out_BN, predicted_BN, strict=True):
        at = out & informative
        errors[at] = _share(predicted[at], data.delta_loss[at])
    return errors


def _largest(axis: FloatArray, placement: IntArray | None) -> BoolArray:
    """Return the points (N,) at the largest value of an axis at their placement."""
    if placement is None:
        return np.asarray(axis == axis.max())
    most = np.full(int(placement.max()) + 1, -np.inf)
    np.maximum.at(most, placement, axis)
    return np.asarray(axis == most[placement])


def _share(predicted: FloatArray, measured: FloatArray) -> FloatArray:
    size = np.where(measured == 0, np.nan, np.abs(measured))
    return np.abs(predicted - measured) / size
