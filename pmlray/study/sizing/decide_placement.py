"""Decision where the adapter of a set of records sits, with its runner-up and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pmlray.design import CostModel
from pmlray.errors import DataError
from pmlray.law import LawSummary, Placement, PlacementChoice, choose_placement
from pmlray.law.data import FloatArray
from pmlray.law.placement_choice import Cost, CostAt, params_at
from pmlray.law.placement_costs import placed_runs, prose_cost, seconds_cost
from pmlray.study.sizing.choose_rank import RankChoice
from pmlray.types import DesignPoint, Observation

Prefer = Literal["parameters", "gpu-seconds", "prose"]
# Below this probability that the first costs less than the second, the law does not tell the two
# apart: the one with fewer parameters is taken, whatever was preferred.
TOLD_APART = 0.8
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

    `choice`: all of them by rising cost of the adapters that would be trained; `chosen`: the name
    of the one taken; `ranks`: of the adapter that would be trained at each, None where no rank
    allowed is enough; `n_runs`: runs that were measured at each; `unmeasured`: names of those
    without a run, which are not compared.
    """

    prefer: Prefer
    choice: PlacementChoice
    chosen: str
    ranks: Mapping[str, int | None]
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
            rank = self.ranks[need.placement.name]
            row["trained_rank"] = rank
            row["parameters"] = None if rank is None else rank * need.placement.params_per_rank
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
    places: Mapping[str, PlaceLimit],
    ranks: Mapping[str, RankChoice],
    prefer: Prefer,
    costs: Mapping[str, CostModel],
) -> PlacementDecision:
    """Return the placement that recalls the wanted share of the records for least.

    They are ordered by what the adapters cost that would be trained, whose ranks are enough at the
    wanted confidence; the law's samples say how probable that order is.

    Args:
        law: of the observations, at several placements.
        observations: those that the law was fitted to.
        places: the placements compared, by name.
        ranks: the rank that would be trained at each, at one or more; without those where none is
            enough.
        prefer: what is to be least.
        costs: cost model of each placement, whose points name it.

    Raises:
        DataError: fewer than two placements have runs, or too few runs measured prose where that
            is preferred.
    """
    known = measured_placements(law, places)
    delta = next(iter(ranks.values())).delta_loss
    at = next(iter(places.values())).point
    cost = _cost(prefer, law, observations, list(known.values()), costs)(
        at.seq_len, at.train_steps, delta
    )
    trained = {n: ranks[n].point.lora_rank if n in ranks else None for n in known}

    def planned(placement: Placement) -> float:
        rank = trained[placement.name]
        if rank is None:
            return math.inf
        # By the middle of what the same rank may cost.
        return float(
            np.median(cost(placement, np.full(len(law.average_samples.sigma), 1.0 * rank)))
        )

    def params(placement: Placement) -> float:
        return (trained[placement.name] or math.inf) * placement.params_per_rank

    order = sorted(known.values(), key=lambda p: (planned(p), params(p)))
    choice = choose_placement(
        *(law.average_samples, list(known.values()), at.seq_len, at.train_steps, delta),
        cost=_within(cost, places),
        order=order,
        measured=law.unseen.data,
    )
    first, second = order[:2]
    taken = first if choice.p_first >= TOLD_APART else min(first, second, key=params)
    return PlacementDecision(
        prefer,
        choice,
        taken.name,
        trained,
        {name: sum(o.point.placement == name for o in observations) for name in known},
        tuple(name for name in places if name not in known),
    )


def measured_placements(law: LawSummary, places: Iterable[str]) -> dict[str, Placement]:
    """Return those of the places that the law has points at, by name; DataError for fewer than
    two."""
    of_law = {placement.name: placement for placement in law.unseen.data.placements}
    known = {name: of_law[name] for name in places if name in of_law}
    if len(known) < 2:
        raise DataError(
            f"of the placements {', '.join(places)} only {', '.join(known) or 'none'} has runs that"
            " carry a law: nothing tells which is best; look at the failures in the store, or name"
            " one placement (--placement)"
        )
    return known


def _within(cost: Cost, places: Mapping[str, PlaceLimit]) -> Cost:
    """Return a cost that is infinite above the largest rank allowed at a placement."""

    def limited(placement: Placement, lora_rank: FloatArray) -> FloatArray:
        told = cost(placement, lora_rank)
        return np.where(lora_rank > places[placement.name].limit, np.inf, told)

    return limited


def _cost(
    prefer: Prefer,
    law: LawSummary,
    observations: Sequence[Observation],
    known: Sequence[Placement],
    costs: Mapping[str, CostModel],
) -> CostAt:
    """Return what is to be least, at a length, steps and loss reduction."""
    n_samples = law.average_samples.sigma.size
    placed = [(o, p) for o, p in placed_runs(observations) if p in known]
    if prefer == "parameters":
        return params_at
    if prefer == "prose":
        if (harm := prose_cost(placed, known, n_samples)) is None:
            measured = sum(o.prose_delta_loss is not None for o, _ in placed)
            raise DataError(
                f"{measured} runs measured an adapter's effect on prose at {len(known)} placements:"
                " too few to tell which does the least harm; give the search more to spend, or"
                " prefer another measure (--prefer)"
            )
        return harm

    def work(placement: Placement, lora_rank: float, seq_len: float) -> float:
        """The gpu_seconds that the placement's cost model has for a step."""
        return costs[placement.name].predict(
            DesignPoint(int(lora_rank), int(seq_len), 1, placement.name)
        )

    if (seconds := seconds_cost(placed, known, n_samples, work)) is None:
        raise DataError(
            "the runs measured no gpu_seconds at some of the placements, so that nothing tells"
            " which takes the fewest: prefer another measure (--prefer)"
        )
    return seconds


def describe_decision(found: Mapping[str, Any]) -> str:
    """Describe a decision in a few sentences, from its JSON object."""
    rows = {row["placement"]: row for row in found["placements"]}
    chosen, other = rows[found["chosen"]], rows[found["runner_up"]]
    prefer: Prefer = found["prefer"]
    sure = f"{100 * found['p_first']:.0f} %"
    first = found["placements"][0]["placement"]
    verdict = f"{found['chosen']} for the {WORDS[prefer]}, then {found['runner_up']}"
    if found["far"]:
        verdict += (
            f"; {sure} of the law's samples have that order, but it is of ranks, a length or steps"
            " more than four times beyond those measured, where no run has tested the law"
        )
    elif found["told_apart"]:
        verdict += f"; that order is {sure} sure"
    elif first == found["chosen"] and found["p_first"] <= 1.0 - TOLD_APART:
        verdict += (
            f"; by the law alone {found['runner_up']} needs less"
            f" ({100 - 100 * found['p_first']:.0f} % sure), but its adapter takes more where the"
            " recall is to be as sure as is wanted"
        )
    elif first == found["chosen"]:
        verdict += (
            f"; the law does not tell the two apart ({sure} sure of that order), and this one takes"
            " no more parameters at the wanted confidence"
        )
    else:
        verdict = (
            f"{found['chosen']}: the law does not tell it from {first} by the {WORDS[prefer]}"
            f" ({sure} sure of the latter), so that the one with fewer parameters is taken"
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
    """Describe the adapter that would be trained at a placement, and what the law expects."""
    if row["trained_rank"] is None:
        return f"{row['placement']} at no rank allowed"
    value, low, high = ("inf" if x is None else f"{x:.6g}" for x in row["cost"].values())
    return (
        f"{row['placement']} with rank {row['trained_rank']}, {row['parameters']:.0f} parameters"
        f" (by the law's estimate {value} {UNITS[prefer]}, 90 % interval [{low}, {high}])"
    )
