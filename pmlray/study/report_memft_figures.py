"""Figures of what MemFT changed against plain SFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import altair as alt

from pmlray.study.compare import MemftPair
from pmlray.study.report_figures import QUARTERS, AnyChart, Panel, Row, data, layered, tips

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


def memft_panels(pairs: Sequence[MemftPair]) -> tuple[Panel, ...]:
    """Exact, prefix and token recall of each pair, SFT joined to MemFT."""
    if not pairs:
        return ()
    return tuple(_pair_panel(pairs, name) for name in ("exact", "prefix", "token"))


def pair_label(number: int, pair: MemftPair) -> str:
    """Short and unique: the pair's number in the table, its rank and length."""
    return f"{number}: r{pair.point.lora_rank} l{pair.point.seq_len}"


def _pair_panel(pairs: Sequence[MemftPair], name: str) -> Panel:
    labels = [pair_label(i, pair) for i, pair in enumerate(pairs, start=1)]
    dots: list[Row] = []
    joins: list[Row] = []
    for label, pair in zip(labels, pairs, strict=True):
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
    )
