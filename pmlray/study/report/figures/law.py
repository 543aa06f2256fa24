"""Figures of the law: its curves among the points, and its errors."""

from __future__ import annotations

from typing import Literal

import altair as alt
import numpy as np

from pmlray.law import CAPPED, LawSummary, law_data, usable_points
from pmlray.study.findings.result import SearchResult, fitted_runs
from pmlray.study.report.figures.style import (
    AnyChart,
    ChartRow,
    Panel,
    data,
    layered,
    log_axis,
    observation_row,
    padded,
    tips,
)
from pmlray.types import Observation

# Quantiles of the 90 % interval and its median.
EDGES = (0.05, 0.5, 0.95)
CURVE_POINTS = 48
_RUN_TIPS = (
    *("lora_rank", "supervised_tokens", "train_steps", "delta_loss", "final_loss", "base_loss"),
    *("token_recall", "round", "sequence_id", "seed"),
)
_AXIS_TITLES = {
    "seq_len": "seq_len, supervised tokens (log)",
    "lora_rank": "lora_rank (log)",
}
DELTA = "delta_loss, nats per token"


def fitted_points(result: SearchResult) -> tuple[Observation, ...]:
    """Return the SFT runs measured for the law, in the order in which they were chosen."""
    return tuple(o for o in result.law_observations if o.method == "sft")


def drawn_steps(result: SearchResult) -> int:
    """Return the optimiser steps that the law's curves are drawn for: the largest measured."""
    return max(o.point.train_steps for o in fitted_points(result))


def law_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw delta_loss against seq_len and against lora_rank: points, law, 90% band."""
    if not fitted_points(result):
        return ()
    return (
        Panel(
            "delta-by-length",
            "Loss reduction against length",
            "Scatter of measured delta_loss against seq_len, coloured by lora_rank, with the"
            " fitted law's curves and their 90% bands.",
            _law_chart(result, "seq_len", "lora_rank"),
        ),
        Panel(
            "delta-by-rank",
            "Loss reduction against rank",
            "Scatter of measured delta_loss against lora_rank, coloured by seq_len, with the"
            " fitted law's curves and their 90% bands.",
            _law_chart(result, "lora_rank", "seq_len"),
        ),
    )


def _law_chart(
    result: SearchResult,
    along: Literal["seq_len", "lora_rank"],
    colour: Literal["seq_len", "lora_rank"],
) -> AnyChart:
    observed = fitted_points(result)
    targets = result.spec.target_points()
    grid = result.spec.space.seq_len if along == "seq_len" else result.spec.space.lora_rank
    measured_at = [
        o.supervised_tokens if along == "seq_len" else o.point.lora_rank for o in observed
    ]
    scale, axis = log_axis(
        sorted({*grid, *(getattr(p, along) for p in targets)}), _AXIS_TITLES[along]
    )
    heights = [o.delta_loss for o in observed]
    if result.law is not None:
        heights += [t.delta_loss for t in result.law.targets]
        if result.law.fit.law.form in CAPPED:
            heights.append(max(o.base_loss for o in observed))
    x = alt.X(along, type="quantitative", scale=scale, axis=axis)
    y = alt.Scale(domain=padded(heights, 0.08), nice=False)
    levels = [getattr(o.point, colour) for o in observed]
    # Eight labels of up to three digits fit a phone's width, or five longer ones.
    legend = alt.Legend(columns=8 if max(levels) < 1000 else 5, format=",d")
    shade = alt.Color(colour, type="ordinal", title=colour, legend=legend)
    layers: list[AnyChart] = []
    if result.law is not None:
        low, high = min(*grid, *measured_at), max(*grid, *measured_at)
        high = max(high, *(getattr(p, along) for p in targets))
        curves = data(
            _curve_rows(result.law, observed, along, colour, (low, high), drawn_steps(result))
        )
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
        if result.law.fit.law.form in CAPPED:
            layers.append(_ceiling(observed))
    rows = [observation_row(o) for o in observed]
    if along == "seq_len":
        rows = [{**row, "seq_len": row["supervised_tokens"]} for row in rows]
    points = alt.Chart(data(rows)).mark_point(
        filled=True, size=64, opacity=0.95, stroke="#7d8590", strokeWidth=0.6
    )
    encoded = points.encode(
        x=x,
        y=alt.Y("delta_loss", type="quantitative", scale=y, title=DELTA),
        color=shade,
        tooltip=tips(*_RUN_TIPS),
    )
    if len({o.point.train_steps for o in observed}) > 1:
        drawn = f"datum.train_steps == {drawn_steps(result)}"
        encoded = encoded.encode(
            shape=alt.Shape("train_steps", type="nominal"),
            opacity=alt.condition(drawn, alt.value(0.95), alt.value(0.25)),
        )
    return layered([*layers, encoded], 340)


def _curve_rows(
    law: LawSummary,
    observed: tuple[Observation, ...],
    along: str,
    colour: str,
    span: tuple[float, float],
    steps: int,
) -> list[ChartRow]:
    rows: list[ChartRow] = []
    xs = np.geomspace(*span, CURVE_POINTS) if span[1] > span[0] else np.array([span[0]])
    for level in sorted({getattr(o.point, colour) for o in observed}):
        same = np.full_like(xs, level, dtype=float)
        r, length = (same, xs) if along == "seq_len" else (xs, same)
        drawn = law.average_samples.predict(r, length, np.full_like(same, steps))
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


def _ceiling(observed: tuple[Observation, ...]) -> alt.Chart:
    base = float(np.mean([o.base_loss for o in observed]))
    rule = alt.Chart(data([{"base_loss": round(base, 5)}])).mark_rule(strokeDash=[5, 4])
    return rule.encode(y=alt.Y("base_loss", type="quantitative"), tooltip=tips("base_loss"))


def residual_rows(result: SearchResult) -> list[ChartRow]:
    """Return every SFT run of the law as a row with the law's prediction.

    `predicted`, `residual` (nats per token, measured less predicted) and `role`, which says whether
    the run was fitted. Empty without a law.
    """
    law, observed = result.law, fitted_points(result)
    if law is None:
        return []
    used = usable_points(law_data(observed), law.fit.law.form)
    in_law = {o.run_key for o in fitted_runs(result.spec, observed)}
    rows = []
    for o, kept in zip(observed, used.tolist(), strict=True):
        row = observation_row(o)
        at = (o.point.lora_rank, o.supervised_tokens, o.point.train_steps, o.base_loss)
        row["predicted"] = round(float(law.fit.law.predict(*at)), 5)
        row["residual"] = round(row["delta_loss"] - row["predicted"], 5)
        row["role"] = "fitted" if kept else "set aside: final_loss ≤ ln 2"
        if o.run_key not in in_law:
            row["role"] = "left out: optimisation-limited"
        rows.append(row)
    return rows


def is_fitted(row: ChartRow) -> bool:
    """Return whether a row of `residual_rows` took part in the fit."""
    return row["role"] == "fitted"


def error_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw predicted against measured with the diagonal, and the residuals against length."""
    rows, observed = residual_rows(result), fitted_points(result)
    fitted = [row for row in rows if is_fitted(row)]
    if not fitted:
        return ()
    ends = padded([row["delta_loss"] for row in rows] + [row["predicted"] for row in fitted])
    both, few = alt.Scale(domain=ends, nice=False), alt.Axis(tickCount=6)
    diagonal = alt.Chart(data([{"measured": e, "predicted": e} for e in ends]))
    dots = alt.Chart(data(rows)).mark_point(
        filled=True, size=64, opacity=0.95, stroke="#7d8590", strokeWidth=0.6, clip=True
    )
    shared = tips(*_RUN_TIPS, "predicted", "residual", "role")
    dots = dots.encode(
        color=alt.Color("lora_rank", type="ordinal", title="lora_rank"), tooltip=shared
    )
    if len(fitted) < len(rows):
        dots = dots.encode(
            shape=alt.Shape("role", type="nominal", title=None, legend=alt.Legend(columns=2))
        )
    against = [
        diagonal.mark_line(strokeDash=[5, 4], color="#7d8590", strokeWidth=1.5).encode(
            x=alt.X("measured", type="quantitative", scale=both, axis=few),
            y=alt.Y("predicted", type="quantitative", scale=both, axis=few),
        ),
        dots.encode(
            x=alt.X(
                "delta_loss", type="quantitative", scale=both, axis=few, title="measured " + DELTA
            ),
            y=alt.Y("predicted", type="quantitative", scale=both, axis=few, title="predicted"),
        ),
    ]
    scale, axis = log_axis([o.supervised_tokens for o in observed], _AXIS_TITLES["seq_len"])
    limit = 1.15 * max(abs(row["residual"]) for row in fitted) or 0.1
    residuals = [
        alt.Chart(data([{"zero": 0}])).mark_rule(strokeDash=[5, 4]).encode(y="zero:Q"),
        dots.encode(
            x=alt.X("supervised_tokens", type="quantitative", scale=scale, axis=axis),
            y=alt.Y(
                "residual",
                type="quantitative",
                scale=alt.Scale(domain=[-limit, limit], nice=False),
                title="measured − predicted, nats per token",
            ),
        ),
    ]
    return (
        Panel(
            "predicted-measured",
            "Predicted against measured",
            "Scatter of the law's delta_loss against the measured one, with the diagonal of"
            " perfect agreement.",
            layered(against, 320),
        ),
        Panel(
            "residuals",
            "Residuals",
            "Scatter of measured minus predicted delta_loss against seq_len.",
            layered(residuals, 320),
        ),
    )
