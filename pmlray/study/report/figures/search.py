"""Figures of the search: the order of its runs, and the precision of the law over rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import altair as alt

from pmlray.study.findings.result import LawSnapshot, SearchResult
from pmlray.study.report.figures.placed import placed_row, placed_tips, rank_rows
from pmlray.study.report.figures.style import (
    AnyChart,
    ChartRow,
    Panel,
    data,
    drawn_note,
    layered,
    named_line,
    observation_row,
    padded,
    tips,
)
from pmlray.types import Family

MAX_ROUNDS_IN_LEGEND = 16
# Most runs whose places in a cell fit a page's width.
MOST_ORDERED = 300
# Most runs per cell that are still numbered.
MOST_NUMBERED = 3


def order_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw the measured cells in the order of choice, coloured by round.

    Runs are numbered while cells hold few of them; with many, they are tiles without numbers.
    """
    rows: list[ChartRow] = []
    names = result.placements
    visits: Counter[Family] = Counter()
    chosen = sorted(result.law_observations, key=lambda o: o.round)
    for number, o in enumerate(chosen[:MOST_ORDERED], start=1):
        row = {**observation_row(o), "order": number, "visit": visits[o.point.family]}
        rows.append(row | placed_row(o.point) if names else row)
        visits[o.point.family] += 1
    if not rows:
        return ()
    deepest = max(visits.values())
    columns = 1 if deepest <= MOST_NUMBERED else math.ceil(math.sqrt(deepest))
    for row in rows:
        down, across = divmod(row["visit"], columns)
        cell = (row.get("placement"), row["lora_rank"], row["seq_len"])
        own = math.ceil(visits[cell] / columns)
        row["down"] = down - (own - 1) / 2
        row["across"] = across - (columns - 1) / 2
    lines = math.ceil(deepest / columns)
    ranks = len({(row.get("placement"), row["lora_rank"]) for row in rows})
    padding = alt.Scale(paddingInner=0.2, paddingOuter=0.1)
    by_rank, y = rank_rows(rows, names, padding)
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "seq_len",
            type="ordinal",
            axis=alt.Axis(labelAngle=0, format=",d", grid=columns == 1),
            scale=alt.Scale() if columns == 1 else padding,
        ),
        y=y,
        yOffset=alt.YOffset("down", type="quantitative", scale=_centred(lines)),
        tooltip=tips(
            *placed_tips(result),
            *("order", "round", "lora_rank", "seq_len", "train_steps", "sequence_id", "seed"),
            *("delta_loss", "gpu_seconds"),
        ),
    )
    many = len({row["round"] for row in rows}) > MAX_ROUNDS_IN_LEGEND
    colour = alt.Color("round", type="ordinal", legend=None if many else alt.Legend())
    if columns > 1:
        across = alt.XOffset("across", type="quantitative", scale=_centred(columns))
        tiles = base.encode(xOffset=across, color=colour)
        chart: AnyChart = tiles.mark_square(filled=True, size=110, opacity=1).properties(
            height=max(120, ranks * (lines * 14 + 12))
        )
        numbered = "a tile a run, in each cell in the order in which they were chosen,"
    else:
        step, size, font = (26, 330, 11) if deepest <= 2 else (24, 300, 10)
        rings = base.mark_point(size=size, strokeWidth=2.5, opacity=1, fill="transparent")
        numbers = base.mark_text(fontSize=font).encode(text="order:O")
        chart = layered([rings.encode(color=colour), numbers], max(120, ranks * deepest * step))
        numbered = "numbered in the order in which it was chosen"
    return (
        Panel(
            "order",
            "Order of choice",
            f"Every run of the law at its seq_len and {by_rank}, {numbered} and coloured by round.",
            chart,
            drawn_note(len(rows), len(chosen), which="those chosen first"),
        ),
    )


def _centred(n: int) -> alt.Scale:
    """Return a scale for n places around the middle of a cell."""
    return alt.Scale(domain=[-n / 2, n / 2])


def learning_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw the law's exponents and the targets' relative interval after each round."""
    if not result.snapshots:
        return ()
    exponents = [_exponent(result.snapshots, name) for name in ("rank_exponent", "len_exponent")]
    relative = _relative_interval(result)
    return (*exponents, relative) if relative is not None else tuple(exponents)


def _exponent(snapshots: Sequence[LawSnapshot], name: str) -> Panel:
    rows = [
        {
            **_known(s),
            name: round(float(getattr(s.law.fit.law, name)), 5),
            "low": round(s.law.intervals[name][0], 5),
            "high": round(s.law.intervals[name][1], 5),
        }
        for s in snapshots
    ]
    # Intervals of the first rounds are very wide: they may be clipped, those of the later half not.
    later = rows[len(rows) // 2 :]
    ends = [row[name] for row in rows] + [row[k] for row in later for k in ("low", "high")]
    scale = alt.Scale(domain=padded(ends, 0.35), nice=False)
    base = alt.Chart(data(rows)).encode(
        x=_spent(rows), tooltip=tips("round", "n_runs", "gpu_seconds", name, "low", "high")
    )
    height = alt.Y(name, type="quantitative", title=name, scale=scale, axis=alt.Axis(tickCount=6))
    chart = [
        base.mark_rule(strokeWidth=2, clip=True).encode(
            y=alt.Y("low", type="quantitative", scale=scale, title=name), y2="high"
        ),
        base.mark_line().encode(y=height),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=height),
    ]
    return Panel(
        name.replace("_", "-") + "-by-round",
        f"{name} after each round",
        f"The fitted {name} with its 90% interval after each round, against the gpu_seconds spent.",
        layered(chart, 260),
    )


def _relative_interval(result: SearchResult) -> Panel | None:
    rows = [
        {**_known(s), "relative_interval": max(s.law.relative_interval, 1e-5)}
        for s in result.snapshots
        if s.law.relative_interval is not None
    ]
    if not rows:
        return None
    stop = result.spec.stop.relative_interval
    values = [row["relative_interval"] for row in rows] + ([stop] if stop is not None else [])
    low, high = min(values) / 1.4, max(values) * 1.4
    y = alt.Y(
        "relative_interval",
        type="quantitative",
        title="relative half-width (log)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(format="~%", values=_one_two_five(low, high)),
    )
    base = alt.Chart(data(rows)).encode(
        x=_spent(rows), y=y, tooltip=tips("round", "n_runs", "gpu_seconds", "relative_interval")
    )
    layers: list[AnyChart] = [
        base.mark_line(),
        base.mark_point(filled=True, size=60, opacity=1),
    ]
    if stop is not None:
        rule = alt.Chart(data([{"relative_interval": stop}])).mark_rule()
        rule = rule.encode(y=y, tooltip=tips("relative_interval"))
        layers.append(named_line(rule, f"the search's goal, {100 * stop:g}%"))
    return Panel(
        "relative-interval-by-round",
        "Interval at the targets after each round",
        "The largest half-width of the 90% interval at the targets, as a share of the"
        " prediction, against the gpu_seconds spent; the search's goal is a dashed line.",
        layered(layers, 260),
    )


def _known(snapshot: LawSnapshot) -> ChartRow:
    return {
        "round": snapshot.round,
        "n_runs": snapshot.n_observations,
        "gpu_seconds": round(snapshot.gpu_seconds, 3),
    }


def _spent(rows: Sequence[ChartRow]) -> alt.X:
    scale = alt.Scale(domain=padded([row["gpu_seconds"] for row in rows]), nice=False)
    axis = alt.Axis(tickCount=6, grid=False, title="gpu_seconds spent")
    return alt.X("gpu_seconds", type="quantitative", scale=scale, axis=axis)


def _one_two_five(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    return [k * 10.0**d for d in decades for k in steps if low <= k * 10.0**d <= high]
