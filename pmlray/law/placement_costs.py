"""What adapters cost at several placements, by runs that measured it: gpu_seconds, and prose.

Shapes: N runs, K placements, Q slopes, n samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.law.data import FloatArray
from pmlray.law.observed_placements import observed_placements
from pmlray.law.placement_choice import Cost, CostAt, PlacementChoice, choices_at
from pmlray.law.placements import Placement
from pmlray.law.summary import LawSummary
from pmlray.types import Observation

# Fewest runs beyond the parameters of a trend, so that its noise is known.
LEAST_SPARE = 3


@dataclass(frozen=True, slots=True)
class Trend:
    """Linear trend with a level of each placement and slopes common to all.

    `coef_nC`: samples of the levels (K), then of the slopes; `kept`: the places of these among the
    regressors, of which those that the runs cannot tell from others are left out.
    """

    placements: tuple[Placement, ...]
    coef_nC: FloatArray
    kept: tuple[int, ...]

    def at(self, placement: Placement, regressors_nQ: FloatArray) -> FloatArray:
        """Return the value at a placement under every sample, (n,)."""
        level_n = self.coef_nC[:, self.placements.index(placement)]
        slope_nQ = self.coef_nC[:, len(self.placements) :]
        return level_n + np.sum(slope_nQ * regressors_nQ[:, list(self.kept)], axis=1)


def fit_trend(
    placements: tuple[Placement, ...],
    place_N: Sequence[int],
    regressors_NQ: FloatArray,
    value_N: FloatArray,
    n_samples: int,
) -> Trend | None:
    """Fit a trend by least squares, and draw samples of it under normal noise and a flat prior;
    None where a placement has no runs or too few are left to know the noise. The draws' seed is
    fixed.
    """
    level_NK = np.eye(len(placements))[list(place_N)]
    if not level_NK.any(axis=0).all():
        return None
    kept: list[int] = []
    for q in range(regressors_NQ.shape[1]):
        # A regressor that follows from those before it has no slope of its own.
        wider_NC = np.column_stack([level_NK, regressors_NQ[:, [*kept, q]]])
        if np.linalg.matrix_rank(wider_NC) == wider_NC.shape[1]:
            kept.append(q)
    design_NC = np.column_stack([level_NK, regressors_NQ[:, kept]])
    spare = design_NC.shape[0] - design_NC.shape[1]
    if spare < LEAST_SPARE:
        return None
    mean_C, *_ = np.linalg.lstsq(design_NC, value_N)
    rss = float(np.sum((value_N - design_NC @ mean_C) ** 2))
    rng = np.random.default_rng(0)
    sigma_n = np.sqrt(rss / rng.chisquare(spare, n_samples))
    root_CC = np.linalg.cholesky(np.linalg.inv(design_NC.T @ design_NC))
    drawn_nC = rng.standard_normal((n_samples, mean_C.size)) @ root_CC.T
    return Trend(placements, mean_C + sigma_n[:, None] * drawn_nC, tuple(kept))


def measured_choices(
    law: LawSummary, observations: Sequence[Observation], delta_loss: float | None = None
) -> tuple[PlacementChoice, ...]:
    """Return the choices among placements by parameters, and as far as runs measured them by
    gpu_seconds and by harm to prose.

    Args:
        law: fitted to points of several placements; without those there is no choice.
        observations: the runs it was fitted to.
        delta_loss: nats per token; by default what brings the mean loss down to ln 2.
    """
    data, samples, targets = law.unseen.data, law.average_samples, law.targets
    found = choices_at(data, samples, targets, delta_loss)
    runs = [o for o in observations if o.phase == "law" and o.method == "sft"]
    places = observed_placements(runs)
    if not found or places is None:
        return found
    placed = list(zip(runs, places, strict=True))
    n_samples = samples.sigma.size
    if (seconds := _seconds(placed, data.placements, n_samples)) is not None:
        found += choices_at(data, samples, targets, delta_loss, "gpu_seconds", seconds)
    if (harm := _prose_harm(placed, data.placements, n_samples)) is not None:
        found += choices_at(data, samples, targets, delta_loss, "prose", harm)
    return found


Placed = list[tuple[Observation, Placement]]


def _seconds(placed: Placed, placements: tuple[Placement, ...], n: int) -> CostAt | None:
    """Return the gpu_seconds of a run: those of a step are a power of the length, with a factor of
    each placement. A run's share of its pack's time goes by tokens, not by its rank."""
    used = [(o, p) for o, p in placed if o.gpu_seconds > 0 and o.charged_steps > 0]
    trend = _trend_of(
        used,
        placements,
        lambda o, _: [math.log(o.supervised_tokens)],
        lambda o: math.log(o.gpu_seconds / o.charged_steps),
        n,
    )
    if trend is None:
        return None

    def at(seq_len: float, train_steps: float) -> Cost:
        def cost(placement: Placement, rank_n: FloatArray) -> FloatArray:
            length_nQ = np.full((rank_n.size, 1), math.log(seq_len))
            return train_steps * np.exp(trend.at(placement, length_nQ))

        return cost

    # Without known steps there is nothing to multiply.
    return at if all(o.point.train_steps > 0 for o, _ in used) else None


def _prose_harm(placed: Placed, placements: tuple[Placement, ...], n: int) -> CostAt | None:
    """Return the loss added on prose, nats per token: linear in the logarithms of an adapter's
    parameters, the length and the steps, with a level of each placement."""
    trend = _trend_of(
        [(o, p) for o, p in placed if o.prose_delta_loss is not None],
        placements,
        lambda o, p: [
            math.log(o.point.lora_rank * p.params_per_rank),
            math.log(o.supervised_tokens),
            math.log(max(o.point.train_steps, 1)),
        ],
        lambda o: -(o.prose_delta_loss or 0.0),
        n,
    )
    if trend is None:
        return None

    def at(seq_len: float, train_steps: float) -> Cost:
        def cost(placement: Placement, rank_n: FloatArray) -> FloatArray:
            log_params_n = np.log(rank_n * placement.params_per_rank)
            others_nQ = np.full(
                (rank_n.size, 2), [math.log(seq_len), math.log(max(train_steps, 1.0))]
            )
            return trend.at(placement, np.column_stack([log_params_n, others_nQ]))

        return cost

    return at


def _trend_of(
    placed: Placed,
    placements: tuple[Placement, ...],
    regressors: Callable[[Observation, Placement], list[float]],
    value: Callable[[Observation], float],
    n_samples: int,
) -> Trend | None:
    used = [(o, p) for o, p in placed if p in placements]
    if not used:
        return None
    return fit_trend(
        placements,
        [placements.index(p) for _, p in used],
        np.array([regressors(o, p) for o, p in used]),
        np.array([value(o) for o, _ in used]),
        n_samples,
    )
