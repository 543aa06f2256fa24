"""Figures of several placements: what a parameter is worth and holds, and their one law.

Shapes: n samples of the law, X places along a curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import altair as alt
import numpy as np

from pmlray.law import PlaceWorth
from pmlray.study.findings.placed_law import worths_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import RunCapacity, capacity_rows, params_axis
from pmlray.study.report.figures.law import CURVE_POINTS, DELTA, EDGES
from pmlray.study.report.figures.placed import (
    LABEL_LIMIT,
    effective_axis,
    placement_colour,
    placement_shape,
)
from pmlray.study.report.figures.run_rows import (
    drawn_steps,
    is_fitted,
    residual_rows,
    runs_note,
)
from pmlray.study.report.figures.style import (
    GREY,
    AnyChart,
    ChartRow,
    Panel,
    data,
    dots,
    drawn_note,
    layered,
    named_line,
    padded,
    thinned,
    tips,
)

# Most lengths whose collapse is drawn, those with the most runs.
MOST_LENGTHS = 6


def worth_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw what a parameter is worth at each placement, with its 90% interval; empty while the law
    has one placement."""
    worths = worths_of(result.law)
    if not worths:
        return ()
    names = result.placements
    rows = [_worth_row(worths[name]) for name in names if name in worths]
    reference = next(iter(worths))
    ends = [row[end] for row in rows for end in ("low", "high")] + [1.0]
    low, high = min(ends) / 1.15, max(ends) * 1.15
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    ticks = [x for x in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if low <= x <= high]
    title = "worth beside one of the reference (log)"
    axis = alt.Axis(values=ticks, format="~g", title=title)
    y = alt.Y(
        "placement",
        type="nominal",
        sort=list(names),
        title=None,
        axis=alt.Axis(grid=True, labelLimit=LABEL_LIMIT),
    )
    shared = alt.Chart(data(rows)).encode(
        y=y,
        color=placement_colour(names, legend=False),
        tooltip=tips("placement", "worth", "low", "high", "n_runs"),
    )
    one = alt.Chart(data([{"one": 1}])).mark_rule()
    one = one.encode(x=alt.X("one", type="quantitative", scale=scale, axis=axis))
    layers: list[AnyChart] = [
        named_line(one, "as much as there"),
        shared.mark_rule(strokeWidth=2).encode(
            x=alt.X("low", type="quantitative", scale=scale, axis=axis), x2="high"
        ),
        shared.mark_point(filled=True, size=90, opacity=1).encode(
            x=alt.X("worth", type="quantitative", scale=scale, axis=axis),
            shape=placement_shape(names, legend=False),
        ),
    ]
    return (
        Panel(
            "placement-worth",
            f"What a parameter is worth beside one of {reference}",
            "Dot plot of what one parameter of an adapter is worth at each placement beside one at"
            f" {reference}, with its 90% interval.",
            layered(layers, max(110, 34 * len(rows))),
        ),
    )


def _worth_row(found: PlaceWorth) -> ChartRow:
    return {
        "placement": found.name,
        "worth": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "n_runs": found.n_points,
    }


def density_panels(found: Sequence[RunCapacity], names: tuple[str, ...]) -> tuple[Panel, ...]:
    """Draw the bits a parameter of every run over its adapter's parameters, by placement; empty
    where no adapter's parameters are known."""
    drawn = capacity_rows(thinned(found), names)
    rows = [row for row in drawn if row["bits_per_param"] is not None]
    if not rows:
        return ()
    chart = dots(rows).encode(
        x=params_axis(rows),
        y=alt.Y("bits_per_param", type="quantitative", title="bits an adapter parameter"),
        color=placement_colour(names),
        shape=placement_shape(names),
        tooltip=tips(
            *("placement", "n_params", "bits_per_param", "lora_rank", "supervised_tokens"),
            *("train_steps", "delta_loss", "token_recall", "sequence_id", "seed"),
        ),
    )
    return (
        Panel(
            "placement-bits",
            "Bits a parameter by placement",
            "Scatter of the bits that every SFT run holds a parameter against its adapter's"
            " parameters, coloured and shaped by placement.",
            chart.properties(height=300),
            drawn_note(len(drawn), len(found)),
        ),
    )


def collapse_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw delta_loss against effective parameters, a figure a length: the runs of all placements
    about one curve of the law. Empty while the law has one placement."""
    if not worths_of(result.law):
        return ()
    rows = [row for row in residual_rows(result) if "effective_params" in row]
    counts = Counter(row["seq_len"] for row in rows)
    chosen = sorted(length for length, _ in counts.most_common(MOST_LENGTHS))
    ends = padded([row["delta_loss"] for row in rows] + [row["predicted"] for row in rows], 0.08)
    return tuple(
        _collapse_panel(result, [row for row in rows if row["seq_len"] == length], length, ends)
        for length in chosen
    )


def collapse_curve(
    result: SearchResult, span: tuple[float, float], seq_len: float, steps: int
) -> list[ChartRow]:
    """Return the law's median and 90% interval over effective parameters between two numbers of
    them, for a law of several placements."""
    law = result.law
    assert law is not None
    reference = law.unseen.data.placements[0]
    params_X = np.geomspace(*span, CURVE_POINTS)
    drawn_nX = law.average_samples.predict(params_X / reference.params_per_rank, seq_len, steps)
    low, middle, high = np.quantile(drawn_nX, EDGES, axis=0)
    return [
        {
            "effective_params": float(f"{x:.6g}"),
            "seq_len": seq_len,
            "delta_loss": round(float(m), 5),
            "low": round(float(a), 5),
            "high": round(float(b), 5),
        }
        for x, m, a, b in zip(params_X.tolist(), middle, low, high, strict=True)
    ]


def _collapse_panel(
    result: SearchResult, rows: list[ChartRow], length: int, ends: list[float]
) -> Panel:
    steps, names = drawn_steps(result), result.placements
    values = [row["effective_params"] for row in rows]
    x = effective_axis(values)
    y = alt.Scale(domain=ends, nice=False)
    height = alt.Y("delta_loss", type="quantitative", scale=y, title=DELTA)
    # Whole records may fall short of the length that was asked for.
    tokens = float(np.mean([row["supervised_tokens"] for row in rows]))
    curve = collapse_curve(result, (min(values) / 1.2, max(values) * 1.2), tokens, steps)
    lines = alt.Chart(data(curve)).encode(x=x)
    points = dots(rows, 72).encode(
        x=x,
        y=height,
        color=placement_colour(names),
        shape=placement_shape(names),
        tooltip=tips(
            *("placement", "lora_rank", "effective_params", "supervised_tokens", "train_steps"),
            *("delta_loss", "predicted", "role", "sequence_id", "seed"),
        ),
    )
    if any(row["train_steps"] != steps or not is_fitted(row) for row in rows):
        told = f"datum.train_steps == {steps} && datum.role == 'fitted'"
        points = points.encode(opacity=alt.condition(told, alt.value(0.95), alt.value(0.25)))
    curve_line = lines.mark_line(strokeWidth=2, color=GREY, clip=True).encode(
        y=height, tooltip=tips("effective_params", "delta_loss", "low", "high")
    )
    layers: list[AnyChart] = [
        lines.mark_area(opacity=0.2, color=GREY, clip=True).encode(
            y=alt.Y("low", type="quantitative", scale=y, title=DELTA), y2="high"
        ),
        named_line(curve_line, "the law, with its 90% interval", (1, 0)),
        points,
    ]
    return Panel(
        f"placement-collapse-{length}",
        f"One law of effective parameters, {length:,} tokens",
        f"Scatter of measured delta_loss at {length} tokens against effective parameters, coloured"
        " and shaped by placement, with the law's one curve and its 90% band.",
        layered(layers, 300),
        runs_note(result),
    )
