"""Placements of a search side by side: their worth, bits and cost, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from pmlray.law import PlaceWorth
from pmlray.study.findings.placed_law import params_per_rank, worths_of
from pmlray.study.findings.placement_words import choice_sentences
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import capacities
from pmlray.study.report.figures.placements import (
    MOST_LENGTHS,
    collapse_panels,
    density_panels,
    worth_panels,
)
from pmlray.study.report.page import Section
from pmlray.study.report.tables import Table, number


@dataclass(frozen=True, slots=True)
class PlacementRow:
    """One placement as measured: `where` in the spec's words, the adapter's parameters of a rank
    (None where not known), the SFT runs of the law, a parameter's worth, the most bits a parameter
    of any run, and the mean gpu_seconds of a run and of its thousand tokens and steps."""

    name: str
    where: str
    params_per_rank: int | None
    n_runs: int
    worth: PlaceWorth | None
    bits_per_param: float | None
    gpu_seconds: float | None
    gpu_seconds_per_work: float | None


def placement_rows(result: SearchResult) -> tuple[PlacementRow, ...]:
    """Return every placement of a search over several, in the order of the spec."""
    worths, held = worths_of(result.law), capacities(result)
    found: list[PlacementRow] = []
    for name in result.spec.space.placements if result.placements else ():
        own = [c for c in held if c.run.point.placement == name]
        runs = [c.run for c in own]
        bits = [c.bits.per_param for c in own if c.bits.per_param is not None]
        work = sum(o.supervised_tokens * o.charged_steps for o in runs) / 1000.0
        found.append(
            PlacementRow(
                str(name),
                result.spec.places[name].describe(),
                params_per_rank(result.spec, runs[0]) if runs else None,
                len(runs),
                worths.get(str(name)),
                max(bits, default=None),
                fmean(o.gpu_seconds for o in runs) if runs else None,
                sum(o.gpu_seconds for o in runs) / work if work > 0 else None,
            )
        )
    return tuple(found)


def placements_json(result: SearchResult) -> list[dict[str, Any]]:
    """Return the placements as JSON types, one object each; empty for a search with one place."""
    return [asdict(row) for row in placement_rows(result)]


def placements_section(result: SearchResult) -> Section:
    """Return the section of a search over several placements."""
    rows = placement_rows(result)
    return Section(
        "placements",
        "Placements",
        placements_text(result),
        (
            *worth_panels(result),
            *density_panels(capacities(result), result.placements),
            *collapse_panels(result),
        ),
        (_table(rows), *_choice_tables(result)),
        choice_sentences(result.choices),
    )


def placements_text(result: SearchResult) -> str:
    """Explain effective parameters, and what the figures show of them."""
    worths = worths_of(result.law)
    if not worths:
        return "The law has runs of one placement yet, so that nothing tells them apart."
    reference = next(iter(worths))
    text = (
        f"An adapter's effective parameters are those of {reference} that its own are worth: what"
        " one is worth there, times how many it has. If they are all that matters, the runs of all"
        " placements lie about one curve at each length. What a placement holds and how fast it"
        " learns are told apart by more steps alone. Beyond four times the ranks, lengths or steps"
        " measured at a placement no run has tested the law there."
    )
    lengths = {o.point.seq_len for o in result.law_observations if o.method == "sft"}
    if len(lengths) > MOST_LENGTHS:
        text += f" Of {len(lengths)} lengths the {MOST_LENGTHS} with the most runs are drawn."
    return text


def _table(rows: Sequence[PlacementRow]) -> Table:
    columns = (
        *("placement", "modules and layers", "parameters a rank", "runs", "worth", "worth 90%"),
        *("most bits a parameter", "gpu_seconds a run", "gpu_seconds a 1,000 tokens and steps"),
    )
    return Table(
        "Placements as measured",
        columns,
        tuple(
            (
                *(row.name, row.where, row.params_per_rank, row.n_runs),
                *(row.worth.value if row.worth else None, _interval(row.worth)),
                *(row.bits_per_param, row.gpu_seconds, row.gpu_seconds_per_work),
            )
            for row in rows
        ),
    )


def _interval(worth: PlaceWorth | None) -> str:
    if worth is None:
        return "–"
    if worth.low == worth.high:
        return "the reference"
    return f"{number(worth.low, 3)} to {number(worth.high, 3)}"


def _choice_tables(result: SearchResult) -> tuple[Table, ...]:
    if not result.choices:
        return ()
    rows = tuple(
        (
            *(choice.by, need.placement.name, need.lora_rank.value),
            f"{number(need.lora_rank.low)} to {number(need.lora_rank.high)}",
            "no" if need.far else "yes",
            *(need.cost.value, f"{number(need.cost.low)} to {number(need.cost.high)}"),
            *(need.p_best, choice.seq_len, choice.train_steps, choice.delta_loss),
        )
        for choice in result.choices
        for need in choice.needs
    )
    columns = (
        *("least", "placement", "lora_rank needed", "lora_rank 90%", "within 4 × measured"),
        *("cost", "cost 90%", "probability of the least"),
        *("seq_len", "train_steps", "delta_loss wanted"),
    )
    return (Table("What a loss reduction costs at each placement", columns, rows),)
