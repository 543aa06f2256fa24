"""Place and rank of a sizing's adapter, by a law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pmlray.api.sizing.places import PlaceOption
from pmlray.api.sizing.stored_law import LawAtHand, fit_for
from pmlray.errors import DataError
from pmlray.law import LawSummary
from pmlray.study.sizing.card import answer
from pmlray.study.sizing.choose_rank import RankChoice, choose_rank
from pmlray.study.sizing.decide_placement import (
    PlaceLimit,
    decide_placement,
    measured_placements,
)

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizePlan


@dataclass(frozen=True)
class SizedRank:
    """Place and rank of the adapter by a law, and the answer of `pmlray size` as JSON types.

    `law`: with the ranks of that place as its targets.
    """

    option: PlaceOption
    choice: RankChoice
    law: LawSummary
    answer: dict[str, Any]


def answer_by(plan: SizePlan, law: LawAtHand) -> SizedRank:
    """Return the place and rank by a law; DataError when no allowed rank is enough."""
    if len(plan.options) == 1:
        (option,) = plan.options
        return _sized(plan, law, option, _rank(plan, law, option), law.summary, {})
    by_name = {str(option.name): option for option in plan.options}
    choices, refusals = dict[str, RankChoice](), list[DataError]()
    for name in measured_placements(law.summary, by_name):
        try:
            choices[name] = _rank(plan, law, by_name[name])
        except DataError as error:
            refusals.append(error)
    if not choices:
        raise DataError(f"at every placement too little is held; at the last, {refusals[-1]}")
    decision = decide_placement(
        *(law.summary, law.observations),
        {name: PlaceLimit(option.point, option.limit) for name, option in by_name.items()},
        choices,
        plan.request.prefer,
        {name: plan.cost_by(law.observations, option) for name, option in by_name.items()},
    )
    option = by_name[decision.chosen]
    summary = fit_for(plan.search.spec, (option,), law.observations) or law.summary
    told = {"decision": decision.to_json()}
    return _sized(plan, law, option, choices[decision.chosen], summary, told)


def _rank(plan: SizePlan, law: LawAtHand, option: PlaceOption) -> RankChoice:
    own = {p.name: p for p in law.summary.unseen.data.placements}.get(str(option.name))
    return choose_rank(
        *(law.summary, law.observations, plan.request.wanted, option.point),
        *(plan.records.tokens_per_record, option.limit),
        1 if plan.start is None else plan.start.lora_rank,
        own,
    )


def _sized(
    plan: SizePlan,
    law: LawAtHand,
    option: PlaceOption,
    choice: RankChoice,
    summary: LawSummary,
    told: Mapping[str, Any],
) -> SizedRank:
    seconds = plan.cost_by(law.observations, option).predict(choice.point)
    per_rank = option.training.params_per_rank
    found = answer(choice, plan.request.wanted, summary, per_rank, seconds)
    return SizedRank(option, choice, summary, {**found, **told})
