"""Judgement of a law at its targets: do the points determine it there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.law.data import BoolArray, FloatArray, LawData, informative_points
from pmlray.law.fitting.fit import FitStatus, LawFit
from pmlray.law.placements import PlacedPoint, Placement
from pmlray.law.validation.advice import what_next
from pmlray.types import DesignPoint

# Points whose delta_loss differs by less than this share of the largest are all alike.
ALIKE_SHARE = 0.05
# Largest half-width of a target's interval, as a share of the prediction, at which it is known.
WIDEST = 1.0 / 3.0
# A target this many times beyond the measured ranks, lengths or steps is marked as far: the shipped
# tables test the drift of the exponents to about 2.6 times.
FAR = 4.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Status of a law and its reason; `enough`: there are enough points to trust an interval."""

    status: FitStatus
    message: str
    enough: bool


def shortages(data: LawData, fit: LawFit) -> list[str]:
    """List what is missing for an interval to be trusted.

    Informative cells must outnumber the law's parameters, drift excluded, by one: with fewer, some
    parameters are known from the prior alone, and the noise is not known at all.
    """
    known = data.subset(informative_points(data))
    drift = 0 if fit.law.drift is None else len(fit.law.drift.coefs)
    needed = fit.law.params.size - drift + 1
    n_cells = np.unique(known.cells()).size if len(known) else 0
    reasons: list[str] = []
    if n_cells < needed:
        reasons.append(
            f"{n_cells} distinct (r, l, t) that are not saturated, and {needed} are needed, one"
            " more than the law has parameters"
        )
    least, most = float(data.delta_loss.min()), float(data.delta_loss.max())
    if np.all(np.isnan(data.base_loss)) and least > (1.0 - ALIKE_SHARE) * most > 0:
        reasons.append(
            "delta_loss is all but the same at every point and no base loss is known, so all may be"
            " saturated (--base-loss tells)"
        )
    if np.unique(known.plain_rank).size < 2:
        reasons.append("fewer than two ranks among them, which leaves rank_exponent open")
    if np.unique(known.seq_len).size < 2:
        reasons.append("fewer than two lengths among them, which leaves len_exponent open")
    return reasons


def judge(
    data: LawData,
    fit: LawFit,
    half_widths: Sequence[tuple[DesignPoint | PlacedPoint, float]],
    beyond: Sequence[DesignPoint | PlacedPoint] = (),
) -> Judgement:
    """Judge whether the law is known at its targets.

    half_widths: of each target, the half-width of its 90 % interval as a share of the prediction.
    beyond: the targets that the law puts above all that was measured, where no base loss is known.
    A parameter that is open but leaves every target known is named and changes no status.
    """
    missing = shortages(data, fit)
    reasons = [
        f"at {_at(point)} the law is only known to {100 * width:.3g} %"
        for point, width in half_widths
        if width > WIDEST
    ]
    reasons += [
        f"at {_at(point)} the law goes above all that was measured, and no base loss says how far"
        for point in beyond
    ]
    if missing or reasons:
        advice = what_next(data, fit.unidentified)
        return Judgement(
            FitStatus.UNDERDETERMINED, "; ".join([*missing, *reasons, advice]), not missing
        )
    open_ = ", ".join(fit.unidentified)
    message = f"the points leave {open_} open, which moves no target" if open_ else ""
    return Judgement(FitStatus.CONVERGED, message, True)


def is_far(data: LawData, where: DesignPoint | PlacedPoint) -> bool:
    """Return whether one point is far; see `are_far`."""
    if isinstance(where, PlacedPoint):
        point, placement = where.point, where.placement
    else:
        point, placement = where, None
    axes = np.array([point.lora_rank, point.seq_len, point.train_steps], dtype=float)
    rank, length, steps = axes.reshape(3, 1)
    return bool(are_far(data, rank, length, steps, placement)[0])


def are_far(
    data: LawData,
    lora_rank: FloatArray,
    seq_len: FloatArray,
    train_steps: FloatArray,
    placement: Placement | None = None,
) -> BoolArray:
    """Return whether points of one shape lie beyond FAR times the measured ranks, lengths or steps.

    Of several placements the ranks are those measured at its own, if there are any, and the
    parameters those of all. Steps count where both the points and the target know them.
    """
    ratio = 1.0
    axes: list[tuple[FloatArray, FloatArray]] = [(data.seq_len, seq_len)]
    if placement is not None:
        ratio = placement.params_per_rank / data.placements[0].params_per_rank
        if data.placement is not None and placement in data.placements:
            own = data.placement == data.placements.index(placement)
            axes.append((data.lora_rank[own], lora_rank))
    axes.append((data.plain_rank, ratio * lora_rank))
    known = data.train_steps[data.train_steps > 0]
    axes.append((known, np.where(train_steps > 0, train_steps, known.max(initial=1.0))))
    far = np.zeros(lora_rank.shape, dtype=np.bool_)
    for values, at in axes:
        if values.size:
            far |= (at > FAR * values.max()) | (at < values.min() / FAR)
    return far


def _at(where: DesignPoint | PlacedPoint) -> str:
    if isinstance(where, PlacedPoint):
        return f"{where.placement.name}, {_at(where.point)}"
    return f"rank {where.lora_rank} and {where.seq_len} tokens"
