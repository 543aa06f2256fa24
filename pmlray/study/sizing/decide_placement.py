"""Decision where the adapter of a set of records sits, with its runner-up and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pmlray.design import CostModel
from pmlray.errors import DataError
from pmlray.law import LawSummary, Placement, PlacementChoice, choose_placement
from pmlray.law.data import FloatArray
from pmlray.law.placement_choice import Cost, PlacementNeed, adapter_params
from pmlray.study.sizing.needed_loss import needed_loss
from pmlray.study.sizing.prose_harm import ProseHarm
from pmlray.study.sizing.request import Wanted
from pmlray.types import DesignPoint, Observation

Prefer = Literal["parameters", "gpu-seconds", "prose"]
# Below so many chances in one that the first costs less than the second, the law does not tell the
# two apart: the one with fewer parameters is taken, whatever was preferred.
TOLD_APART = 0.8
# Standard deviation of the log of a run's gpu_seconds: a sixth was seen on a busy machine.
COST_SPREAD = 1.0 / 6.0
UNITS: Mapping[Prefer, str] = {
    "parameters": "parameters",
    "gpu-seconds": "gpu_seconds of training",
    "prose": "nats per token more loss on plain prose",
}
WORDS: Mapping[Prefer, str] = {
    "parameters": "fewest parameters",
    "gpu-seconds": "fewest gpu_seconds of training",
    "prose": "least harm to prose",
}


@dataclass(frozen=True, slots=True)
class PlaceLimit:
    """What a compared placement is planned for: the largest rank measured, at the whole set's l and
    T, and the largest rank allowed there."""

    point: DesignPoint
    limit: int


@dataclass(frozen=True, slots=True)
class PlacementDecision:
    """Placement that is taken among those compared.

    `choice`: all of them by rising cost; `chosen`: the name of the one taken; `n_runs`: runs that
    were measured at each; `unmeasured`: names of those without a run, which are not compared.
    """

    prefer: Prefer
    choice: PlacementChoice
    chosen: str
    n_runs: Mapping[str, int]
    unmeasured: tuple[str, ...]

    @property
    def told_apart(self) -> bool:
        """Whether the first two are told apart by what they cost."""
        return self.choice.p_first >= TOLD_APART

    @property
    def runner_up(self) -> str:
        """Name of the other of the first two."""
        first, second = (need.placement.name for need in self.choice.needs[:2])
        return second if self.chosen == first else first

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; inf becomes null."""
        found = self.choice.to_json()
        for row, need in zip(found["placements"], self.choice.needs, strict=True):
            params = _params(need)
            row["parameters"] = params if math.isfinite(params) else None
            row["n_runs"] = self.n_runs[need.placement.name]
        return {
            "prefer": self.prefer,
            "chosen": self.chosen,
            "runner_up": self.runner_up,
            "told_apart": self.told_apart,
            "unmeasured": list(self.unmeasured),
            **found,
        }


def decide_placement(
    law: LawSummary,
    observations: Sequence[Observation],
    wanted: Wanted,
    tokens_per_record: float,
    places: Mapping[str, PlaceLimit],
    prefer: Prefer,
    costs: Mapping[str, CostModel],
) -> PlacementDecision:
    """Return the placement that recalls the wanted share of the records for least.

    Args:
        law: of the observations, at several placements.
        observations: those that the law was fitted to.
        wanted: share of the records to recall.
        tokens_per_record: target tokens of a record on average.
        places: the placements compared, by name.
        prefer: what is to be least.
        costs: cost model of each placement, whose points name it.

    Raises:
        DataError: fewer than two placements have runs, no placement reaches the share at any rank
            allowed, or too few runs measured prose where that is preferred.
    """
    known = {p.name: p for p in law.unseen.data.placements if p.name in places}
    unmeasured = tuple(name for name in places if name not in known)
    if len(known) < 2:
        raise DataError(
            f"{', '.join(known) or 'none'} of the placements {', '.join(places)} has runs that"
            " carry a law: nothing tells which is best; look at the failures in the store, or name"
            " one placement (--placement)"
        )
    needed = needed_loss(observations, wanted.recall, tokens_per_record)
    delta = law.average.base_loss - needed.value
    at = next(iter(places.values())).point
    cost = _cost(prefer, observations, delta * at.seq_len, places, costs)
    choice = choose_placement(
        *(law.average_samples, list(known.values()), at.seq_len, at.train_steps, delta),
        cost=_within(cost, places),
    )
    if math.isinf(choice.needs[0].cost.value):
        raise DataError(
            f"to recall {wanted.recall:.4g} of the records after {at.train_steps} steps takes more"
            f" than the largest rank allowed at each of {', '.join(known)} by the law: train longer"
            " (--steps), allow larger ranks (--max-rank), ask for less recall, or split the records"
            " over several adapters"
        )
    return PlacementDecision(
        prefer,
        choice,
        _taken(choice).placement.name,
        {name: sum(o.point.placement == name for o in observations) for name in known},
        unmeasured,
    )


def _taken(choice: PlacementChoice) -> PlacementNeed:
    """Return the first, or, of the first two where they are not told apart, the one with fewer
    parameters."""
    first, second = choice.needs[:2]
    if choice.p_first >= TOLD_APART or math.isinf(second.cost.value):
        return first
    return min((first, second), key=_params)


def _params(need: PlacementNeed) -> float:
    """Return the trainable parameters at the median of the needed rank."""
    return need.lora_rank.value * need.placement.params_per_rank


def _within(cost: Cost, places: Mapping[str, PlaceLimit]) -> Cost:
    """Return a cost that is infinite above the largest rank allowed at a placement."""

    def limited(placement: Placement, lora_rank: FloatArray) -> FloatArray:
        told = cost(placement, lora_rank)
        return np.where(lora_rank > places[placement.name].limit, np.inf, told)

    return limited


def _cost(
    prefer: Prefer,
    observations: Sequence[Observation],
    wanted_nats: float,
    places: Mapping[str, PlaceLimit],
    costs: Mapping[str, CostModel],
) -> Cost:
    """Return what is to be least, as a function of the placement and the rank.

    wanted_nats: nats that the whole set is to lose in all.
    """
    if prefer == "parameters":
        return adapter_params
    if prefer == "prose":
        harm = ProseHarm(observations, wanted_nats)

        def added_loss(placement: Placement, lora_rank: FloatArray) -> FloatArray:
            if placement.name not in harm.names:
                raise DataError(
                    f"no run at {placement.name} measured an adapter's effect on prose: prefer"
                    " another measure (--prefer)"
                )
            return harm.samples(lora_rank.size)[placement.name]

        return added_loss

    def seconds(placement: Placement, lora_rank: FloatArray) -> FloatArray:
        name = placement.name
        point, cost = places[name].point, costs[name]
        # A run's cost is linear in its rank.
        at_one = cost.predict(DesignPoint(1, point.seq_len, point.train_steps, name))
        per_rank = cost.predict(DesignPoint(2, point.seq_len, point.train_steps, name)) - at_one
        place = list(places).index(name)
        noise = np.random.default_rng(place).standard_normal(lora_rank.size)
        return (at_one + per_rank * (lora_rank - 1.0)) * np.exp(COST_SPREAD * noise)

    return seconds


def describe_decision(found: Mapping[str, Any]) -> str:
    """Describe a decision in a few sentences, from its JSON object."""
    rows = {row["placement"]: row for row in found["placements"]}
    chosen, other = rows[found["chosen"]], rows[found["runner_up"]]
    prefer: Prefer = found["prefer"]
    sure = f"{100 * found['p_first']:.0f} %"
    verdict = (
        f"{found['chosen']} for the {WORDS[prefer]}, then {found['runner_up']}; that order is"
        f" {sure} sure"
        if found["told_apart"]
        else f"{found['chosen']}: the law does not tell it from {found['runner_up']} by the"
        f" {WORDS[prefer]} ({sure} sure), so that the one with fewer parameters is taken"
    )
    runs = ", ".join(f"{row['n_runs']} at {row['placement']}" for row in found["placements"])
    lines = [
        f"placement {verdict}",
        f"  {_told(chosen, prefer)}; {_told(other, prefer)}",
        f"  by the law of the runs at all placements ({runs})",
    ]
    if found["unmeasured"]:
        lines.append(f"  not compared, for want of runs: {', '.join(found['unmeasured'])}")
    return "\n".join(lines)


def _told(row: Mapping[str, Any], prefer: Prefer) -> str:
    rank, cost = row["lora_rank"], row["cost"]
    if rank["value"] is None or cost["value"] is None:
        return f"{row['placement']} at no rank allowed"
    value, low, high = ("inf" if x is None else f"{x:.4g}" for x in cost.values())
    return (
        f"{row['placement']} at about rank {rank['value']:.0f} with {row['parameters']:.0f}"
        f" parameters"
        + ("" if prefer == "parameters" else f", {value} {UNITS[prefer]}")
        + f" [{low}, {high}]"
    )
