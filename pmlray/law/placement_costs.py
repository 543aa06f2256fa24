"""What adapters cost at several placements, by runs that measured it: gpu_seconds, and prose.

Shapes: P packs, G groups of placements, N runs, K placements, n samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtri

from pmlray.law.data import FloatArray
from pmlray.law.observed_placements import observed_placements
from pmlray.law.placement_choice import Cost, CostAt, PlacementChoice, choices_at
from pmlray.law.placements import Placement
from pmlray.law.summary import LawSummary
from pmlray.types import Observation

# Standard deviation of the log of a run's gpu_seconds: a sixth was seen on a busy machine. It is
# believed of packs as if three of them had shown it, and of a placement beside others whose runs
# train in the same packs: these share one measurement, which goes by tokens.
COST_SPREAD = 1.0 / 6.0
SPREAD_PACKS = 3
# Least text stored, in nats, that a run counts with: its log is the regressor.
LEAST_NATS = 1e-3

Placed = Sequence[tuple[Observation, Placement]]
# Work of one optimiser step by placement, rank and length (supervised tokens), in any unit.
Work = Callable[[Placement, float, float], float]


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
    placed = placed_runs(observations)
    if not found or not placed:
        return found
    n_samples = samples.sigma.size
    if (seconds := seconds_cost(placed, data.placements, n_samples)) is not None:
        found += choices_at(data, samples, targets, delta_loss, "gpu_seconds", seconds)
    if (harm := prose_cost(placed, data.placements, n_samples)) is not None:
        found += choices_at(data, samples, targets, delta_loss, "prose", harm)
    return found


def placed_runs(observations: Sequence[Observation]) -> Placed:
    """Return the runs that the law is fitted to, each with its placement; none where all have the
    same."""
    runs = [o for o in observations if o.phase == "law" and o.method == "sft"]
    places = observed_placements(runs)
    return [] if places is None else list(zip(runs, places, strict=True))


def seconds_cost(
    placed: Placed, placements: Sequence[Placement], n_samples: int, work: Work | None = None
) -> CostAt | None:
    """Return the gpu_seconds of a run under each sample: its work, times what a unit of it cost.

    A pack is one measurement: its runs split its time by their tokens. Packs hold placements with
    one lowest layer, so that is what their costs are told apart by; for the placements within one,
    as for a new run, COST_SPREAD is believed.

    Args:
        placed: runs with their placements.
        placements: those to tell the cost of.
        n_samples: number of samples; their seed is fixed.
        work: of an optimiser step; by default a power of the length, by how the runs split the
            time of their packs, whatever the rank.

    Returns:
        The cost at a length and steps, or None where there are no steps to multiply or a placement
        has no pack that began at its lowest layer.
    """
    used = [(o, p) for o, p in placed if o.gpu_seconds > 0 and o.charged_steps > 0]
    if not used or any(o.point.train_steps <= 0 for o, _ in used):
        return None
    chosen = work or _work_by_length([o for o, _ in used])
    packs: dict[tuple[object, ...], list[tuple[Observation, Placement]]] = {}
    for o, placement in used:
        packs.setdefault((*pack_of(o), _lowest(placement)), []).append((o, placement))
    groups = list(dict.fromkeys(lowest for *_, lowest in packs))
    if any(_lowest(placement) not in groups for placement in placements):
        return None
    rate_P = np.array([_log_rate(runs, chosen) for runs in packs.values()])
    level_nG = _levels([groups.index(lowest) for *_, lowest in packs], rate_P, n_samples)
    # Quantiles in any order: few samples drawn at random would move the middle.
    normal_n = ndtri((np.arange(n_samples) + 0.5) / n_samples)
    rng = np.random.default_rng(1)
    own_nK = COST_SPREAD * np.column_stack([rng.permutation(normal_n) for _ in placements])

    def at(seq_len: float, train_steps: float, _: float) -> Cost:
        def cost(placement: Placement, rank_n: FloatArray) -> FloatArray:
            ranks, which = np.unique(rank_n, return_inverse=True)
            per_step = np.array([chosen(placement, float(rank), seq_len) for rank in ranks])
            level_n = level_nG[:, groups.index(_lowest(placement))]
            scatter_n = own_nK[:, placements.index(placement)]
            return train_steps * per_step[which] * np.exp(level_n + scatter_n)

        return cost

    return at


def prose_cost(placed: Placed, placements: Sequence[Placement], n_samples: int) -> CostAt | None:
    """Return the loss that an adapter adds on prose, nats per token, under each sample.

    Harm = m_k + s log(stored) + noise, with a level m_k of each placement and one slope s: the more
    nats are stored, the more prose suffers, alike everywhere. Both are believed as plain least
    squares has them, with Student's t (the reference prior), so that two runs more than it has
    parameters already say how little they say. None where a placement has no run that measured it,
    or no run is left to know the noise.
    """
    runs = [(o, p) for o, p in placed if o.prose_delta_loss is not None and p in placements]
    if any(all(p != placement for _, p in runs) for placement in placements):
        return None
    n_places = len(placements)
    stored_N = np.log([max(o.delta_loss * o.supervised_tokens, LEAST_NATS) for o, _ in runs])
    level_NK = np.eye(n_places)[[placements.index(p) for _, p in runs]]
    design_NC = np.column_stack([level_NK, stored_N])
    if np.linalg.matrix_rank(design_NC) <= n_places:
        # No two runs at one place stored different amounts: the slope stays out.
        design_NC = level_NK
    spare = design_NC.shape[0] - design_NC.shape[1]
    if spare < 1:
        return None
    harm_N = np.array([-(o.prose_delta_loss or 0.0) for o, _ in runs])
    mean_C, *_ = np.linalg.lstsq(design_NC, harm_N)
    rss = float(np.sum((harm_N - design_NC @ mean_C) ** 2))
    rng = np.random.default_rng(0)
    sigma_n = np.sqrt(rss / rng.chisquare(spare, n_samples))
    root_CC = np.linalg.cholesky(np.linalg.inv(design_NC.T @ design_NC))
    drawn_nC = rng.standard_normal((n_samples, mean_C.size)) @ root_CC.T
    coef_nC = mean_C + sigma_n[:, None] * drawn_nC

    def at(seq_len: float, _: float, delta_loss: float) -> Cost:
        stored = math.log(max(delta_loss * seq_len, LEAST_NATS))

        def cost(placement: Placement, rank_n: FloatArray) -> FloatArray:
            slope_n = coef_nC[:, n_places] if coef_nC.shape[1] > n_places else 0.0
            return coef_nC[:, placements.index(placement)] + slope_n * stored

        return cost

    return at


def pack_of(o: Observation) -> tuple[object, ...]:
    """Return what the runs of one pack have in common: their search, and the pack's place in it."""
    return (o.provenance.get("search_id"), o.round, o.provenance.get("pack_id"))


def _lowest(placement: Placement) -> object:
    """Return the depth of a placement's lowest layer; of one of no known depth, its name."""
    depths = [site.depth for site in placement.sites if site.depth is not None]
    return min(depths) if len(depths) == len(placement.sites) else placement.name


def _log_rate(runs: Sequence[tuple[Observation, Placement]], work: Work) -> float:
    seconds = sum(o.gpu_seconds for o, _ in runs)
    done = sum(
        o.charged_steps * work(p, o.point.lora_rank, float(o.supervised_tokens)) for o, p in runs
    )
    return math.log(seconds / done)


def _levels(group_P: Sequence[int], value_P: FloatArray, n_samples: int) -> FloatArray:
    """Return samples of each group's level, (n, G), under normal noise that is alike in all."""
    at_PG = np.eye(max(group_P) + 1)[list(group_P)]
    count_G = at_PG.sum(axis=0)
    mean_G = at_PG.T @ value_P / count_G
    rss = float(np.sum((value_P - at_PG @ mean_G) ** 2)) + SPREAD_PACKS * COST_SPREAD**2
    rng = np.random.default_rng(0)
    spare = SPREAD_PACKS + len(group_P) - count_G.size
    sigma_n = np.sqrt(rss / rng.chisquare(spare, n_samples))
    drawn_nG = rng.standard_normal((n_samples, count_G.size)) / np.sqrt(count_G)
    return mean_G + sigma_n[:, None] * drawn_nG


def _work_by_length(runs: Sequence[Observation]) -> Work:
    """Return the work of a step as the power of the length by which runs of one pack split its
    time: 1 where a step has the whole text, 0 where it has a batch of it."""
    length_N = np.log([o.supervised_tokens for o in runs])
    step_N = np.log([o.gpu_seconds / o.charged_steps for o in runs])
    packs = list(dict.fromkeys(map(pack_of, runs)))
    at_NP = np.eye(len(packs))[[packs.index(pack_of(o)) for o in runs]]
    within_N = length_N - at_NP @ (at_NP.T @ length_N / at_NP.sum(axis=0))
    squares = float(within_N @ within_N)
    power = float(within_N @ step_N) / squares if squares > 1e-9 else 1.0
    return lambda placement, rank, seq_len: seq_len**power
