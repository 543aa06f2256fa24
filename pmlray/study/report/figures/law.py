"""Figures of the law: its curves among the points, and its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import altair as alt
import numpy as np

from pmlray.law import CAPPED
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import PlacedRuns, by_placement
from pmlray.study.report.figures.run_rows import drawn_steps, fitted_points, run_rows, runs_note
from pmlray.study.report.figures.style import (
    AnyChart,
    ChartRow,
    Panel,
    data,
    dots,
    layered,
    log_axis,
    named_line,
    padded,
    tips,
)

# Quantiles of the 90 % interval and its median.
EDGES = (0.05, 0.5, 0.95)
CURVE_POINTS = 48
# More curves than this cannot be told apart.
MOST_CURVES = 10
RUN_TIPS = (
    *("lora_rank", "supervised_tokens", "train_steps", "delta_loss", "final_loss", "base_loss"),
    *("token_recall", "round", "sequence_id", "seed"),
)
AXIS_TITLES = {
    "seq_len": "seq_len, supervised tokens (log)",
    "lora_rank": "lora_rank (log)",
}
DELTA = "delta_loss, nats per token"


def law_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw delta_loss against seq_len and against lora_rank: points, law, 90% band; of several
    placements a pair of figures each, on the same scale of delta_loss."""
    observed = fitted_points(result)
    if not observed:
        return ()
    heights, ceiling = [o.delta_loss for o in observed], None
    if result.law is not None:
        heights += [t.delta_loss for t in result.law.targets]
        if result.law.fit.law.form in CAPPED:
            ceiling = max(o.base_loss for o in observed)
            heights.append(ceiling)
    axes = LawAxes(result.spec.space.seq_len, drawn_steps(result), padded(heights, 0.08), ceiling)
    rows, note = run_rows(result), runs_note(result)
    panels = (
        (
            Panel(
                placed.key("delta-by-length"),
                placed.title("Loss reduction against length"),
                placed.title(
                    "Scatter of measured delta_loss against seq_len, coloured by lora_rank, with"
                    " the fitted law's curves and their 90% bands."
                ),
                _law_chart(placed, axes, rows, "seq_len", "lora_rank"),
                _curves_note(placed, "lora_rank", note),
            ),
            Panel(
                placed.key("delta-by-rank"),
                placed.title("Loss reduction against rank"),
                placed.title(
                    "Scatter of measured delta_loss against lora_rank, coloured by seq_len, with"
                    " the fitted law's curves and their 90% bands."
                ),
                _law_chart(placed, axes, rows, "lora_rank", "seq_len"),
                _curves_note(placed, "seq_len", note),
            ),
        )
        for placed in by_placement(result)
    )
    return tuple(panel for pair in panels for panel in pair)


@dataclass(frozen=True)
class LawAxes:
    """What the charts of all placements share: the design's lengths, the optimiser steps that
    curves are drawn for, the ends of the delta_loss axis, and the largest base loss of the runs,
    which no reduction can exceed, where the law knows a ceiling."""

    lengths: tuple[int, ...]
    steps: int
    heights: list[float]
    ceiling: float | None


def _law_chart(
    placed: PlacedRuns,
    axes: LawAxes,
    rows: list[ChartRow],
    along: Literal["seq_len", "lora_rank"],
    colour: Literal["seq_len", "lora_rank"],
) -> AnyChart:
    observed, law = placed.runs, placed.law
    grid = axes.lengths if along == "seq_len" else placed.ranks
    measured_at = [
        o.supervised_tokens if along == "seq_len" else o.point.lora_rank for o in observed
    ]
    aims = [getattr(p, along) for p in placed.targets]
    scale, axis = log_axis(sorted({*grid, *aims}), AXIS_TITLES[along])
    x = alt.X(along, type="quantitative", scale=scale, axis=axis)
    y = alt.Scale(domain=axes.heights, nice=False)
    levels = [getattr(o.point, colour) for o in observed]
    # Eight labels of up to three digits fit a phone's width, or five longer ones.
    legend = alt.Legend(columns=8 if max(levels) < 1000 else 5, format=",d")
    shade = alt.Color(colour, type="ordinal", title=colour, legend=legend)
    layers: list[AnyChart] = []
    if law is not None:
        span = (min(*grid, *measured_at), max(*grid, *measured_at, *aims))
        curves = data(_curve_rows(placed, along, colour, span, axes.steps))
        band = alt.Chart(curves).mark_area(opacity=0.22, clip=True)
        layers.append(
            band.encode(
                x=x,
                y=alt.Y("low", type="quantitative", scale=y, title=DELTA),
                y2="high",
                color=shade,
            )
        )
        line = alt.Chart(curves).mark_line(strokeWidth=2, clip=True)
        layers.append(
            line.encode(
                x=x,
                y=alt.Y("delta_loss", type="quantitative", scale=y, title=DELTA),
                color=shade,
                tooltip=tips("lora_rank", "seq_len", "train_steps", "delta_loss", "low", "high"),
            )
        )
    if axes.ceiling is not None:
        layers.append(_ceiling(axes.ceiling))
    own = [row for row in rows if placed.name in (None, row.get("placement"))]
    measured = "supervised_tokens" if along == "seq_len" else along
    encoded = dots(own).encode(
        x=alt.X(measured, type="quantitative", scale=scale, axis=axis),
        y=alt.Y("delta_loss", type="quantitative", scale=y, title=DELTA),
        color=shade,
        tooltip=tips(*RUN_TIPS),
    )
    if any(o.point.train_steps != axes.steps for o in observed):
        drawn = f"datum.train_steps == {axes.steps}"
        encoded = encoded.encode(
            shape=alt.Shape("train_steps", type="nominal"),
            opacity=alt.condition(drawn, alt.value(0.95), alt.value(0.25)),
        )
    return layered([*layers, encoded], 340)


def _curve_rows(
    placed: PlacedRuns, along: str, colour: str, span: tuple[float, float], steps: int
) -> list[ChartRow]:
    samples = placed.samples
    assert samples is not None
    rows: list[ChartRow] = []
    xs = np.geomspace(*span, CURVE_POINTS) if span[1] > span[0] else np.array([span[0]])
    for level in _curve_levels(placed, colour):
        same = np.full_like(xs, level, dtype=float)
        r, length = (same, xs) if along == "seq_len" else (xs, same)
        drawn = samples.predict(r, length, np.full_like(same, steps))
        low, middle, high = np.quantile(drawn, EDGES, axis=0)
        for x, m, a, b in zip(xs.tolist(), middle, low, high, strict=True):
            rows.append(
                {
                    along: float(f"{x:.6g}"),
                    colour: level,
                    "train_steps": steps,
                    "delta_loss": round(float(m), 5),
                    "low": round(float(a), 5),
                    "high": round(float(b), 5),
                }
            )
    return rows


def _curve_levels(placed: PlacedRuns, colour: str) -> list[int]:
    """Return the measured ranks or lengths that have a curve: all, or some from end to end."""
    levels = sorted({getattr(o.point, colour) for o in placed.runs})
    chosen = np.linspace(0, len(levels) - 1, min(MOST_CURVES, len(levels)))
    return [levels[i] for i in np.unique(chosen.round().astype(int)).tolist()]


def _curves_note(placed: PlacedRuns, colour: str, note: str) -> str:
    n = len({getattr(o.point, colour) for o in placed.runs})
    if n <= MOST_CURVES or placed.law is None:
        return note
    return "; ".join(filter(None, [note, f"curves at {MOST_CURVES} of {n} values of {colour}"]))


def _ceiling(base_loss: float) -> alt.Chart:
    # Rounded up, so that no run comes to lie above it.
    most = math.ceil(1e5 * base_loss) / 1e5
    rule = alt.Chart(data([{"base_loss": most}])).mark_rule()
    rule = rule.encode(y=alt.Y("base_loss", type="quantitative"), tooltip=tips("base_loss"))
    return named_line(rule, "largest base loss of the runs")
