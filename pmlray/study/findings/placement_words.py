"""Which placement to take, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pmlray.law import Estimate, PlacementChoice, PlacementNeed
from pmlray.law.placement_choice import By

_LEAST: dict[By, str] = {
    "parameters": "The fewest parameters",
    "gpu_seconds": "The fewest gpu_seconds",
    "prose": "The least harm to prose",
}
_UNITS: dict[By, str] = {
    "parameters": "parameters",
    "gpu_seconds": "gpu_seconds",
    "prose": "nats per token of prose",
}


def choice_sentences(choices: Sequence[PlacementChoice]) -> tuple[str, ...]:
    """Return a sentence on each choice: the placement, the runner-up, and how sure the order is."""
    return tuple(choice_sentence(choice) for choice in choices)


def choice_sentence(choice: PlacementChoice) -> str:
    """Return the placement that costs least, the runner-up, and how sure the order is."""
    steps = f" in {choice.train_steps:,.0f} steps" if choice.train_steps else ""
    where = (
        f"to lower the loss of {choice.seq_len:,.0f} tokens by {choice.delta_loss:.3g} nats per"
        f" token{steps}"
    )
    first, second, *others = choice.needs
    if not math.isfinite(first.cost.value):
        return f"No placement is likely to have a rank that is enough {where}."
    order = f", {_percent(choice.p_order)} for the whole order" if others else ""
    return (
        f"{_LEAST[choice.by]} {where}: {_need(first, choice.by)}, then {_need(second, choice.by)}."
        f" That {first.placement.name} comes before {second.placement.name} has a probability of"
        f" {_percent(choice.p_first)}{order}."
    )


def _need(need: PlacementNeed, by: By) -> str:
    if not math.isfinite(need.cost.value):
        return f"{need.placement.name}, where hardly any rank is enough"
    return (
        f"{need.placement.name} at rank {need.lora_rank.value:,.0f} with"
        f" {_number(need.cost.value, by)} {_UNITS[by]} ({_between(need.cost, by)})"
    )


def _between(found: Estimate, by: By) -> str:
    return f"90%: {_number(found.low, by)} to {_number(found.high, by)}"


def _number(value: float, by: By) -> str:
    if not math.isfinite(value):
        return "any number"
    text = f"{value:,.0f}" if by == "parameters" else f"{value:.3g}"
    return text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
