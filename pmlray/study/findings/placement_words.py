"""Which placement to take, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pmlray.law import PlacementChoice, PlacementNeed
from pmlray.law.placement_choice import By

_LEAST: dict[By, str] = {
    "parameters": "fewest parameters",
    "gpu_seconds": "fewest gpu_seconds",
    "prose": "least harm to prose",
}
# From this probability on its digits would be those of a few samples.
NEARLY_SURE = 0.995


def choice_sentences(choices: Sequence[PlacementChoice]) -> tuple[tuple[str, str], ...]:
    """Return each choice as (what was asked, what it says): the placement, the runner-up, and how
    sure the order is."""
    return tuple((f"{_capital(_LEAST[c.by])} {_aim(c)}", f"{_says(c)}.") for c in choices)


def largest_choice(choices: Sequence[PlacementChoice]) -> tuple[str, ...]:
    """Return a sentence on the choices for the longest text with the most steps; none without
    any."""
    if not choices:
        return ()
    most = max((c.seq_len, c.train_steps) for c in choices)
    found = [c for c in choices if (c.seq_len, c.train_steps) == most]
    said = [f"the {_LEAST[c.by]}: {_says(c)}" for c in found]
    if not found[0].reachable:
        said = [_says(found[0])]
    return (f"{_capital(_aim(found[0]))}, {'; '.join(said)}.",)


def _aim(choice: PlacementChoice) -> str:
    steps = f" in {choice.train_steps:,.0f} steps" if choice.train_steps else ""
    return (
        f"to lower the loss of {choice.seq_len:,.0f} tokens by {choice.delta_loss:.3g} nats per"
        f" token{steps}"
    )


def _says(choice: PlacementChoice) -> str:
    first, second, *others = choice.needs
    if not choice.reachable:
        return "no placement is likely to have a rank that is enough"
    order = f", of all of them {_percent(choice.p_order)}" if others else ""
    told = f"{_need(first, choice.by)}, then {_need(second, choice.by)}"
    if choice.far:
        return f"{told}; {_untested(choice)}"
    return f"{told} (probability of this order {_percent(choice.p_first)}{order})"


def _untested(choice: PlacementChoice) -> str:
    """Say that a choice is one of the law's trend alone."""
    far = " and ".join(need.placement.name for need in choice.needs[:2] if need.far)
    return (
        f"how sure that is nobody knows: {far} would have to be more than four times beyond what"
        " was measured, where no run has tested the law"
    )


def _need(need: PlacementNeed, by: By) -> str:
    cost = need.cost
    if not math.isfinite(cost.value):
        return f"{need.placement.name} (hardly any rank is enough)"
    unit = " nats per token of prose" if by == "prose" else f" {by}"
    return (
        f"{need.placement.name} at rank {need.lora_rank.value:,.0f} ({_number(cost.value, by)}"
        f"{unit}, 90%: {_number(cost.low, by)} to {_number(cost.high, by)})"
    )


def _number(value: float, by: By) -> str:
    if not math.isfinite(value):
        return "any number"
    text = f"{value:,.0f}" if by == "parameters" else f"{value:.3g}"
    return text.replace("-", "−")


def _percent(share: float) -> str:
    return "over 99%" if share >= NEARLY_SURE else f"{100 * share:.0f}%"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
