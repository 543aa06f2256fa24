"""First screen of a search's report: what a person came for, in words and one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pmlray.law import FitStatus, LawData, PlacedPoint, RecallForecast, Sizing
from pmlray.law.validation.judgement import is_far
from pmlray.study.findings.answer import (
    LEAST_TOLD,
    PLURALS,
    answer_parts,
    answer_point,
    size_command,
    tried_points,
    unit_of,
)
from pmlray.study.findings.placed_law import rank_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.answer import answer_panels
from pmlray.study.report.figures.style import Panel
from pmlray.study.report.tables import number, percent
from pmlray.types import DesignPoint


@dataclass(frozen=True)
class FirstScreen:
    """Answer of a page: `parts` as (what it is about, in words), then the figure, then the parts
    `beside` it, and the command to give next, if there is one."""

    parts: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    beside: tuple[tuple[str, str], ...]
    command: str


def first_screen(result: SearchResult) -> FirstScreen:
    """Return which rank recalls how much, how sure that is, what it costs, whether MemFT helps, and
    what to do next."""
    found = dict(answer_parts(result))
    measured = bool(result.observations)
    parts = {
        "Recall": found["Recall"] if measured else "No answer yet: nothing is measured.",
        "How sure": " ".join(filter(None, [found.get("How sure"), law_words(result)])),
        **{name: found[name] for name in ("Placement",) if name in found},
        "Cost": cost_words(result),
    }
    beside = {
        "MemFT": found.get("MemFT", _no_memft(result)),
        "Next": _next_words(result),
    }
    command = size_command(result) if measured else ""
    return FirstScreen(tuple(parts.items()), answer_panels(result), tuple(beside.items()), command)


def law_words(result: SearchResult) -> str:
    """Return what the law predicts at its largest target, and how far off it was."""
    law, n = result.law, len(result.law_observations)
    if law is None:
        return f"There is no law yet: {n} runs are measured, too few to fit one."
    if law.fit.status is FitStatus.UNDERDETERMINED:
        return f"The {n} runs leave the law open where it is asked about: {law.fit.message}."
    said = [law.headline, *law.limits]
    if law.targets:
        at = _target(result, [t.point for t in law.targets])
        forecasts = result.recall_result.forecasts
        if forecasts:
            said.insert(0, _forecast_words(forecasts[at], result))
        if result.sizes:
            said.insert(0, _needed_words(result.sizes[at], law.unseen.data))
    return " ".join(said)


def _target(result: SearchResult, points: Sequence[DesignPoint]) -> int:
    """Return the index of the largest target, of several placements at the answer's if it has
    one."""
    best, _ = answer_point(tried_points(result.observations))

    def order(at: int) -> tuple[bool, int, int, int]:
        p = points[at]
        return p.placement == best.point.placement, p.seq_len, p.train_steps, p.lora_rank

    return max(range(len(points)), key=order)


def _needed_words(size: Sizing, data: LawData) -> str:
    """Return the rank that a target takes, or where no run has tested the law at that rank, what
    the target's own rank holds."""
    p, rank = size.point, size.lora_rank
    at = "" if p.placement is None else f" at {p.placement}"
    tokens, steps = f"{p.seq_len:,} tokens", f"{p.train_steps:,} steps"
    if _tested(size, data):
        return (
            f"By the law, {tokens} in {steps} take rank {_rounded(rank.value)}{at} (90% interval"
            f" {_rounded(rank.low)} to {_rounded(rank.high)}) for a mean final loss of ln 2."
        )
    length = size.seq_len
    return (
        f"By the law, {rank_of(p)} holds {_floored(length.value)} tokens (90% interval"
        f" {_floored(length.low)} to {_floored(length.high)}) in {steps} at a"
        f" mean final loss of ln 2; {tokens} would take more than four times the ranks measured,"
        " where no run has tested the law."
    )


def _tested(size: Sizing, data: LawData) -> bool:
    """Return whether the rank needed is within four times those measured."""
    if math.isinf(size.lora_rank.value):
        return False
    point = replace(size.point, lora_rank=math.ceil(size.lora_rank.value))
    return not is_far(data, point if size.placement is None else PlacedPoint(point, size.placement))


def _forecast_words(found: RecallForecast, result: SearchResult) -> str:
    p, recall = found.point, result.recall
    words = (
        f"One more run with {rank_of(p)}, {p.seq_len:,} tokens and {p.train_steps:,} steps would"
        f" recall {percent(found.token.value)} of the tokens ({percent(found.token.low)} to"
        f" {percent(found.token.high)})"
    )
    if recall is not None and recall.tokens_per_record is None:
        sure = found.exact.value
        chance = "under 1%" if sure < LEAST_TOLD else percent(sure)
        return f"{words}, and its whole {unit_of(result)} with a probability of {chance}."
    units = PLURALS[unit_of(result)]
    interval = f"{percent(found.exact.low)} to {percent(found.exact.high)}"
    return f"{words} and {percent(found.exact.value)} of the {units} whole ({interval})."


def _floored(length: float) -> str:
    return number(math.floor(length) if math.isfinite(length) else length)


def _rounded(rank: float) -> str:
    return number(math.ceil(rank) if math.isfinite(rank) else rank)


def cost_words(result: SearchResult) -> str:
    """Return what the search has cost, of its budget, by how many runs."""
    spent, n = result.gpu_seconds, len(result.observations)
    seen = result.observations[-1].provenance if result.observations else {}
    unit = seen.get("gpu_seconds_unit")
    of_unit = f" ({unit} seconds)" if unit else ""
    return (
        f"{number(spent.spent)} of {number(spent.budget)} gpu_seconds{of_unit} were spent"
        f" ({percent(spent.spent / spent.budget)} of the budget) by {n:,} runs."
        f" {_failed(result)}"
    ).strip()


def _failed(result: SearchResult) -> str:
    n = sum(not f.left_out for f in result.failures)
    return f"{n} {'run' if n == 1 else 'runs'} failed." if n else ""


def _no_memft(result: SearchResult) -> str:
    if result.spec.memft is None:
        return "This search asked for no MemFT runs; pmlray compare compares it with SFT."
    asked = " and ".join(result.spec.memft.methods)
    return f"This search asks for {asked}, but no pair has been run."


def _next_words(result: SearchResult) -> str:
    if not result.observations:
        return "Give the search's command again: it goes on where it is."
    if result.law is None:
        return (
            "Give the search's command again, with a larger budget if it is spent, for a law. Which"
            " rank records of yours need:"
        )
    return "Which rank records of yours need:"
