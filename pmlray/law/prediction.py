"""Predictions of a fitted law at any points, as a program asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pmlray.errors import DataError
from pmlray.law.data import BoolArray, FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.placements import Placement
from pmlray.law.validation.checklist import LEVEL
from pmlray.law.validation.judgement import are_far
from pmlray.notebook_html import rows_html

# Points whose samples are held at a time: each has as many as the law, times the runs' noise.
CHUNK = 500
MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LawPrediction:
    """Predicted delta_loss in nats per supervised token: floats at one point, arrays at several.

    Attributes:
        lora_rank, seq_len, train_steps: the points, broadcast to one shape; 0 steps where the
            law's points do not say theirs.
        median, lower, upper: the law's median and central interval at `level`.
        run_lower, run_upper: interval, at `level`, of what one new run would measure there.
        far: True beyond four times the measured ranks, lengths or steps, where nothing but the
            points' own trend tells how the law goes on.
        placement: name of the placement whose ranks are meant; None where the law has only one.
        level: probability that each interval holds, 0.9.

    Example:
        >>> law = fit_law(read_law_data("searches/tables/smollm2_phonebook.csv"))
        >>> found = law.predict(lora_rank=16, seq_len=640, train_steps=160)
        >>> found.lower < found.median < found.upper, found.far
        (True, False)
        >>> law.predict([4, 16], 640, 160).median.shape
        (2,)
    """

    lora_rank: FloatArray | float
    seq_len: FloatArray | float
    train_steps: FloatArray | float
    median: FloatArray | float
    lower: FloatArray | float
    upper: FloatArray | float
    run_lower: FloatArray | float
    run_upper: FloatArray | float
    far: BoolArray | bool
    placement: str | None
    level: float

    def __repr__(self) -> str:
        rows = self._rows()
        at = "" if self.placement is None else f" in {self.placement}"
        if len(rows) != 1:
            n_far = int(np.count_nonzero(self.far))
            return f"LawPrediction({len(rows)} points{at}, {n_far} of them far)"
        rank, length, steps, median, low, high, *_, far = rows[0]
        return (
            f"LawPrediction(delta_loss {median:.4g} [{low:.4g}, {high:.4g}] at rank {rank:g},"
            f" {length:g} tokens, {steps:g} steps{at}{', far' if far else ''})"
        )

    def _repr_html_(self) -> str:
        interval = f"{100 * self.level:g} % interval"
        columns = ("lora_rank", "seq_len", "train_steps", "delta_loss", interval, "one new run")
        rows = [
            (
                *(f"{x:g}" for x in row[:3]),
                row[3],
                f"{row[4]:.4g} to {row[5]:.4g}",
                f"{row[6]:.4g} to {row[7]:.4g}",
                "far beyond the points" if row[8] else "",
            )
            for row in self._rows()
        ]
        more = f", the first {MOST_SHOWN} of {len(rows)}" if len(rows) > MOST_SHOWN else ""
        at = "" if self.placement is None else f" in {self.placement}"
        title = f"delta_loss, nats per token{at}{more}"
        return rows_html(title, (*columns, ""), rows[:MOST_SHOWN])

    def _rows(self) -> list[tuple[float, ...]]:
        axes = (self.lora_rank, self.seq_len, self.train_steps)
        found = (self.median, self.lower, self.upper, self.run_lower, self.run_upper, self.far)
        columns = (np.ravel(values).tolist() for values in (*axes, *found))
        return list(zip(*columns, strict=True))


def predict_points(
    data: LawData,
    samples: AveragedSamples,
    lora_rank: ArrayLike,
    seq_len: ArrayLike,
    train_steps: ArrayLike | None,
    placement: str | None,
) -> LawPrediction:
    """Predict the loss reduction at points from samples of the law, which was fitted to `data`.

    train_steps: None where the points have one number of steps, or none. placement: a name among
    those of the data; None for the reference's ranks. The noise of a run is drawn with a fixed
    seed. DataError where an axis is no number of at least 1, the axes have no common shape, the
    law tells nothing of these steps, or the placement is none of the law's.
    """
    axes = (_axis("lora_rank", lora_rank), _axis("seq_len", seq_len), _steps(data, train_steps))
    try:
        r, length, t = np.broadcast_arrays(*axes)
    except ValueError as error:
        shapes = ", ".join(str(axis.shape) for axis in axes)
        raise DataError(
            f"lora_rank, seq_len and train_steps have the shapes {shapes}, which do not broadcast;"
            " give single numbers, or lists of one length"
        ) from error
    place = _placement(data, placement)
    at = samples if place is None else samples.at(place)
    rng = np.random.default_rng(0)
    flat = np.stack([r.ravel(), length.ravel(), t.ravel()])
    found: list[FloatArray] = [np.empty((5, 0))]
    for start in range(0, r.size, CHUNK):
        ranks, lengths, steps = flat[:, start : start + CHUNK]
        median = np.median(at.predict(ranks, lengths, steps), axis=0)
        edges = at.interval(ranks, lengths, steps, LEVEL)
        of_run = at.run_interval(ranks, lengths, steps, rng, LEVEL)
        found.append(np.stack([median, *edges, *of_run]))
    columns = np.concatenate(found, axis=1).reshape(5, *r.shape)
    far = are_far(data, r, length, t, place)
    if r.ndim == 0:
        numbers = (float(x) for x in (r, length, t, *columns))
        return LawPrediction(*numbers, far=bool(far), placement=_name(data, place), level=LEVEL)
    arrays = (r.copy(), length.copy(), t.copy(), *columns)
    return LawPrediction(*arrays, far=far, placement=_name(data, place), level=LEVEL)


def _axis(name: str, given: ArrayLike) -> FloatArray:
    try:
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {given!r}; expected a number or a list of numbers") from error
    wrong = values[~(np.isfinite(values) & (values >= 1))]
    if wrong.size:
        raise DataError(f"{name} has {wrong[0]:g}; expected finite numbers of at least 1")
    return values


def _steps(data: LawData, given: ArrayLike | None) -> FloatArray:
    """Return the steps to predict for; those of the points where nothing else can be told."""
    known = np.unique(data.train_steps)
    tells = bool(known.size > 1 and np.all(known > 0))
    if given is None:
        if tells:
            raise DataError(
                f"train_steps is missing: the law is of {known[0]:g} to {known[-1]:g} steps, so"
                " say for how many to predict"
            )
        return np.asarray(known[-1])
    steps = _axis("train_steps", given)
    if not tells and np.any(steps != known[-1]):
        measured = f"are all of {known[-1]:g} steps" if known[-1] > 0 else "do not say their steps"
        raise DataError(
            f"the points of this law {measured}, so that it tells nothing of others: leave"
            " train_steps out, or fit the law to runs of several train_steps"
        )
    return steps


def _placement(data: LawData, name: str | None) -> Placement | None:
    if name is None:
        return None
    names = {placement.name: placement for placement in data.placements}
    if name not in names:
        have = f"has {', '.join(names)}" if names else "says of no point where its adapter sits"
        raise DataError(f"the law knows no placement {name!r}; it {have}")
    return names[name]


def _name(data: LawData, placement: Placement | None) -> str | None:
    """Return the name of the placement whose ranks are meant: without one the reference's."""
    if placement is not None:
        return placement.name
    return data.placements[0].name if data.several_placements else None
