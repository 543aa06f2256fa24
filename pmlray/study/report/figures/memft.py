"""Figures of the differences between MemFT and plain SFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import altair as alt

from pmlray.study.comparison.results import paired_difference
from pmlray.study.findings.differences import LEVEL, Difference
from pmlray.study.findings.memft_pairs import MemftPair
from pmlray.study.report.figures.style import (
    QUARTERS,
    AnyChart,
    ChartRow,
    Panel,
    data,
    drawn_note,
    layered,
    named_line,
    padded,
    tips,
)
from pmlray.types import DesignPoint, Method, Schedule

RECALLS = ("exact_recall", "prefix_recall", "token_recall")
# Most pairs that have a line of their own in a figure.
MOST_PAIRS = 60
Changed = tuple[DesignPoint, Method, Mapping[str, Difference]]

SHAPES = ("circle", "diamond", "square", "triangle-up", "cross")
SHORT_METHOD: Mapping[str, str] = MappingProxyType(
    {
        "sft": "SFT",
        "memft_ot": "MemFT-OT",
        "memft_sw": "MemFT-SW",
        "memft_fw": "MemFT-FW",
        "memft_rd": "MemFT-RD",
    }
)
SHORT_SCHEDULE: Mapping[Schedule, str] = MappingProxyType(
    {"linear": "linear", "warmup_constant_decay": "constant"}
)


def memft_panels(pairs: Sequence[MemftPair]) -> tuple[Panel, ...]:
    """Draw exact, prefix and token recall of each pair, SFT joined to MemFT.

    The last panel shows what MemFT changed at each point, with its interval.
    """
    if not pairs:
        return ()
    each = tuple(_pair_panel(pairs, name) for name in ("exact", "prefix", "token"))
    changed = difference_panel("memft-difference", pair_differences(pairs))
    return each if changed is None else (*each, changed)


def pair_differences(pairs: Sequence[MemftPair]) -> list[Changed]:
    """Return each method's recall less SFT's at each point, with its 95% interval over texts."""
    runs: dict[tuple[DesignPoint, Method], list[MemftPair]] = {}
    for pair in pairs:
        runs.setdefault((pair.point, pair.method), []).append(pair)
    changed: list[Changed] = []
    for (point, method), own in runs.items():
        plain, memft = [pair.sft for pair in own], [pair.memft for pair in own]
        found = {name: paired_difference(plain, memft, name) for name in RECALLS}
        changed.append((point, method, {name: d for name, d in found.items() if d is not None}))
    return changed


def difference_panel(key: str, changed: Sequence[Changed]) -> Panel | None:
    """Draw each method's differences from SFT in recall, with intervals; None without any."""
    rows: list[ChartRow] = []
    for point, method, differences in changed:
        label = f"{point_label(replace(point, placement=None))} {SHORT_METHOD[method]}"
        for name in RECALLS:
            if (found := differences.get(name)) is not None:
                rows.append(
                    {
                        "row": label + _place(point),
                        "figure": name,
                        "difference": round(found.mean, 5),
                        "low": round(found.mean if found.low is None else found.low, 5),
                        "high": round(found.mean if found.high is None else found.high, 5),
                        "n_texts": found.n,
                    }
                )
    if not rows:
        return None
    order = list(dict.fromkeys(row["row"] for row in rows))
    title = "difference from SFT"
    few = alt.Axis(tickCount=6)
    # The axis is limited to [-1, 1]: with two texts, intervals exceed any difference of shares.
    ends = padded([row[end] for row in rows for end in ("low", "high")] + [0.0])
    within = alt.Scale(domain=[max(-1.0, ends[0]), min(1.0, ends[1])], nice=False)
    shared = alt.Chart(data(rows)).encode(
        y=alt.Y("row", type="nominal", sort=order, title=None, axis=alt.Axis(grid=True)),
        yOffset=alt.YOffset("figure", type="nominal", scale=alt.Scale(domain=list(RECALLS))),
        color=alt.Color(
            "figure",
            type="nominal",
            scale=alt.Scale(domain=list(RECALLS)),
            # A phone's width has no room for two of the names beside those of the points.
            legend=alt.Legend(title=None, columns=1),
        ),
        tooltip=tips("row", "figure", "difference", "low", "high", "n_texts"),
    )
    at_zero = alt.Chart(data([{"zero": 0}])).mark_rule()
    at_zero = at_zero.encode(
        x=alt.X("zero", type="quantitative", title=title, axis=few, scale=within)
    )
    layers: list[AnyChart] = [
        named_line(at_zero, "as plain fine-tuning"),
        shared.mark_rule(strokeWidth=2, clip=True).encode(
            x=alt.X("low", type="quantitative", title=title, axis=few, scale=within), x2="high"
        ),
        shared.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("difference", type="quantitative", title=title, axis=few, scale=within)
        ),
    ]
    return Panel(
        key,
        f"Recall beside plain fine-tuning, with {100 * LEVEL:g}% intervals",
        "Dot plot of each method's mean difference from SFT in exact, prefix and token recall at"
        " each point, with its interval over texts.",
        layered(layers, max(120, 40 * len(order))),
    )


def point_label(p: DesignPoint) -> str:
    """Return a short label of a point: rank, length, steps, and its schedule and placement where it
    has its own."""
    own = "" if p.schedule is None else f" {SHORT_SCHEDULE[p.schedule]}"
    return f"{_sizes(p)} t{p.train_steps}{own}{_place(p)}"


def _place(p: DesignPoint) -> str:
    # Last in a label, whose end is cut where it is long.
    return "" if p.placement is None else f" {p.placement}"


def _sizes(p: DesignPoint) -> str:
    return f"r{p.lora_rank} l{p.seq_len}"


def pair_label(number: int, pair: MemftPair) -> str:
    """Return a short, unique label: the pair's number in the table, and its point."""
    return f"{number}: {_sizes(pair.point)}{_place(pair.point)}"


def _pair_panel(pairs: Sequence[MemftPair], name: str) -> Panel:
    drawn = pairs[:MOST_PAIRS]
    labels = [pair_label(i, pair) for i, pair in enumerate(drawn, start=1)]
    dots: list[ChartRow] = []
    joins: list[ChartRow] = []
    for label, pair in zip(labels, drawn, strict=True):
        recall = {o.method: float(getattr(o.recall, name)) for o in (pair.sft, pair.memft)}
        joins.append({"pair": label, "low": recall["sft"], "high": recall[pair.method]})
        dots += [
            {
                "pair": label,
                "method": SHORT_METHOD[method],
                "recall": value,
                "sequence_id": pair.sequence_id,
                "seed": pair.seed,
            }
            for method, value in recall.items()
        ]
    shown = [m for m in SHORT_METHOD.values() if any(d["method"] == m for d in dots)]
    y = alt.Y("pair", type="nominal", sort=labels, title=None, axis=alt.Axis(grid=True))
    x = alt.Scale(domain=[-0.03, 1.03], nice=False)
    axis = alt.Axis(values=QUARTERS, format=".2~f", grid=False)
    layers: list[AnyChart] = [
        alt.Chart(data(joins))
        .mark_rule(strokeWidth=2)
        .encode(
            y=y,
            x=alt.X("low", type="quantitative", scale=x, axis=axis, title=f"{name}_recall"),
            x2="high",
        ),
        alt.Chart(data(dots))
        .mark_point(filled=True, size=90, opacity=0.9)
        .encode(
            y=y,
            x=alt.X("recall", type="quantitative", scale=x, axis=axis, title=f"{name}_recall"),
            color=alt.Color("method", type="nominal", scale=alt.Scale(domain=shown), title=None),
            shape=alt.Shape(
                "method",
                type="nominal",
                scale=alt.Scale(domain=shown, range=list(SHAPES)[: len(shown)]),
            ),
            tooltip=tips("pair", "method", "recall", "sequence_id", "seed"),
        ),
    ]
    return Panel(
        f"memft-{name}",
        f"{name.capitalize()} recall",
        f"Dot plot of {name} recall of each pair: SFT joined to MemFT at the same point, text"
        " and seed.",
        layered(layers, 26 * len(labels)),
        drawn_note(len(drawn), len(pairs), "pairs", "the first in the table"),
    )
