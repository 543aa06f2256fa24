"""Capacity of adapters in bits: a figure, a table and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from pmlray.law.capacity import StoredBits, phonebook_entropy, stored_bits
from pmlray.study.findings.placed_law import params_per_rank, rank_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import placement_shape
from pmlray.study.report.figures.style import (
    ChartRow,
    Panel,
    dots,
    drawn_note,
    log_axis,
    thinned,
    tips,
)
from pmlray.study.report.tables import IN_JSON, Table, number, percent
from pmlray.types import Observation


@dataclass(frozen=True)
class RunCapacity:
    """Bits that one run's adapter stores.

    `n_params` of the adapter, None where not known; `controlled`: whether a control run separates
    learning the distribution from memorising the text itself.
    """

    run: Observation
    n_params: int | None
    controlled: bool
    bits: StoredBits


def capacities(result: SearchResult) -> tuple[RunCapacity, ...]:
    """Return the stored bits of every SFT run of the law, in the order in which they were chosen.

    A run without a control counts all of its bits as verbatim.
    """
    found = []
    for o in result.law_observations:
        if o.method != "sft":
            continue
        per_rank = params_per_rank(result.spec, o)
        n_params = None if per_rank is None else o.point.lora_rank * per_rank
        # Only the source of the phonebook task has a known entropy.
        n_records = o.provenance.get("n_records") if o.task == "phonebook" else None
        bits = stored_bits(
            o.delta_loss,
            o.supervised_tokens,
            n_params,
            control_delta_loss=o.control_delta_loss or 0.0,
            entropy_bits=None if n_records is None else phonebook_entropy(n_records),
        )
        found.append(RunCapacity(o, n_params, o.control_delta_loss is not None, bits))
    return tuple(found)


def capacity_text(found: tuple[RunCapacity, ...]) -> str:
    """Explain the bits, and the most that any run stored."""
    if not found:
        return "Nothing is measured for the law yet."
    text = (
        "A text of l tokens whose loss fell by delta_loss takes l · delta_loss / ln 2 fewer bits to"
        " write down with the adapter than without it. A run that knows its text by heart shows the"
        " text's bits, not the adapter's limit."
    )
    if not all(run.controlled for run in found):
        text += (
            " Where no control was measured, bits learnt about the kind of text count as the text's"
            " own, so that these are upper bounds of what is held verbatim."
        )
    if any((run.run.control_delta_loss or 0.0) < 0 for run in found):
        text += (
            " Runs that made fresh text less likely, by reciting their own there, have learnt"
            " nothing of its kind: all of their bits are the text's."
        )
    dense = [run for run in found if run.bits.per_param is not None]
    if dense:
        most = max(dense, key=lambda run: run.bits.per_param or 0.0)
        text += (
            f" The densest run holds {number(most.bits.per_param, 3)} bits an adapter parameter, at"
            f" {rank_of(most.run.point)} and {most.run.supervised_tokens:,} tokens."
        )
    else:
        text += " How many parameters an adapter has is not recorded, so bits are given whole."
    return text


def capacity_rows(found: Sequence[RunCapacity], names: Sequence[str]) -> list[ChartRow]:
    """Return each run's bits as a row of a chart; names: of placements, where there are several."""
    return [
        {
            **({"placement": c.run.point.placement, "n_params": c.n_params} if names else {}),
            "lora_rank": c.run.point.lora_rank,
            "seq_len": c.run.point.seq_len,
            "supervised_tokens": c.run.supervised_tokens,
            "train_steps": c.run.point.train_steps,
            "sequence_id": c.run.sequence_id,
            "seed": c.run.seed,
            "delta_loss": round(c.run.delta_loss, 5),
            "token_recall": c.run.recall.token,
            "stored_bits": round(c.bits.total, 1),
            "bits_per_param": None if c.bits.per_param is None else round(c.bits.per_param, 5),
        }
        for c in found
    ]


def capacity_panels(
    found: tuple[RunCapacity, ...], names: tuple[str, ...] = ()
) -> tuple[Panel, ...]:
    """Draw stored bits against rank, and verbatim bits per parameter where the number is known.

    names: of placements, where there are several; runs then lie along their adapters' parameters.
    """
    rows = capacity_rows(thinned(found), names)
    note = drawn_note(len(rows), len(found))
    if names:
        rows = [row for row in rows if row["n_params"] is not None]
    if not rows:
        return ()
    along, x = "lora_rank", params_axis(rows) if names else None
    if x is None:
        scale, axis = log_axis([row["lora_rank"] for row in rows], "lora_rank (log)")
        x = alt.X("lora_rank", type="quantitative", scale=scale, axis=axis)
    else:
        along = "adapter parameters"
    # Eight labels of up to three digits fit a phone's width, or five longer ones.
    columns = 8 if max(row["seq_len"] for row in rows) < 1000 else 5
    legend = alt.Legend(columns=columns, format=",d")
    colour = alt.Color("seq_len", type="ordinal", title="seq_len", legend=legend)
    words = tips(*(name for name in rows[0] if rows[0][name] is not None))

    def panel(name: str, title: str, unit: str) -> Panel:
        chart = dots(row for row in rows if row[name] is not None).encode(
            x=x, y=alt.Y(name, type="quantitative", title=unit), color=colour, tooltip=words
        )
        if names:
            chart = chart.encode(shape=placement_shape(names, alone=True))
        return Panel(
            name.replace("_", "-"),
            title,
            f"Scatter of {unit} of every SFT run against {along}, coloured by seq_len.",
            chart.properties(height=280),
            note,
        )

    panels = [panel("stored_bits", "Bits stored", "bits stored")]
    if any(row["bits_per_param"] is not None for row in rows):
        panels.append(panel("bits_per_param", "Bits a parameter", "bits an adapter parameter"))
    return tuple(panels)


def params_axis(rows: Sequence[ChartRow]) -> alt.X:
    """Return a logarithmic axis of adapters' parameters, `n_params` of rows."""
    values = [row["n_params"] for row in rows]
    scale = alt.Scale(type="log", domain=[min(values) / 1.2, max(values) * 1.2], nice=False)
    axis = alt.Axis(grid=False, tickCount=5, format="~s", title="adapter parameters (log)")
    return alt.X("n_params", type="quantitative", scale=scale, axis=axis)


def capacity_table(found: tuple[RunCapacity, ...], names: tuple[str, ...] = ()) -> Table:
    """Return a table of every run's bits; names: of placements, where there are several."""
    columns = (
        *(("placement",) if names else ()),
        *("lora_rank", "tokens", "train_steps", "sequence", "seed", "delta_loss", "stored bits"),
        *("learnt bits", "adapter parameters", "bits a parameter", "share of entropy", "run_key"),
    )
    rows = tuple(
        (
            *((c.run.point.placement,) if names else ()),
            *(c.run.point.lora_rank, c.run.supervised_tokens, c.run.point.train_steps),
            *(c.run.sequence_id, c.run.seed, c.run.delta_loss, c.bits.total),
            *(c.bits.learnt if c.controlled else None, c.n_params, c.bits.per_param),
            *(percent(c.bits.share), c.run.run_key),
        )
        for c in found
    )
    return Table("Bits held by each run", columns, rows, IN_JSON)


def capacity_json(found: tuple[RunCapacity, ...]) -> list[dict[str, Any]]:
    """Return the bits as JSON types, one object per run."""
    return [
        {
            "run_key": c.run.run_key,
            "n_params": c.n_params,
            "stored_bits": c.bits.total,
            "learnt_bits": c.bits.learnt if c.controlled else None,
            "bits_per_param": c.bits.per_param,
            "entropy_share": c.bits.share,
            **({} if (at := c.run.point.placement) is None else {"placement": at}),
        }
        for c in found
    ]
