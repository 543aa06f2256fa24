"""Figures of the law's errors: what it predicts beside what was measured."""

from __future__ import annotations

import altair as alt

from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import AXIS_TITLES, DELTA, RUN_TIPS
from pmlray.study.report.figures.placed import placed_tips, placement_colour, placement_shape
from pmlray.study.report.figures.run_rows import is_fitted, residual_rows, runs_note
from pmlray.study.report.figures.style import (
    GREY,
    Panel,
    data,
    dots,
    layered,
    log_axis,
    named_line,
    padded,
    tips,
)


def error_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw predicted against measured with the diagonal, and the residuals against length."""
    rows, note = residual_rows(result), runs_note(result)
    fitted = [row for row in rows if is_fitted(row)]
    if not fitted:
        return ()
    ends = padded([row["delta_loss"] for row in rows] + [row["predicted"] for row in fitted])
    both, few = alt.Scale(domain=ends, nice=False), alt.Axis(tickCount=6)
    diagonal = alt.Chart(data([{"measured": e, "predicted": e} for e in ends]))
    # The power form predicts far too much of what it sets aside.
    points = dots(rows, clip=True)
    shared = tips(*placed_tips(result), *RUN_TIPS, "predicted", "residual", "role")
    names = result.placements
    if names:
        points = points.encode(
            color=placement_colour(names), shape=placement_shape(names), tooltip=shared
        )
        # Shapes tell placements apart, so what was set aside is faint.
        points = points.encode(
            opacity=alt.condition("datum.role == 'fitted'", alt.value(0.95), alt.value(0.25))
        )
    else:
        points = points.encode(
            color=alt.Color("lora_rank", type="ordinal", title="lora_rank"), tooltip=shared
        )
    if len(fitted) < len(rows) and not names:
        points = points.encode(
            shape=alt.Shape("role", type="nominal", title=None, legend=alt.Legend(columns=2))
        )
    diagonal = diagonal.mark_line(color=GREY, strokeWidth=1.5).encode(
        x=alt.X("measured", type="quantitative", scale=both, axis=few),
        y=alt.Y("predicted", type="quantitative", scale=both, axis=few),
    )
    against = [
        named_line(diagonal, "measured as predicted"),
        points.encode(
            x=alt.X(
                "delta_loss", type="quantitative", scale=both, axis=few, title="measured " + DELTA
            ),
            y=alt.Y("predicted", type="quantitative", scale=both, axis=few, title="predicted"),
        ),
    ]
    scale, axis = log_axis([row["supervised_tokens"] for row in rows], AXIS_TITLES["seq_len"])
    limit = 1.15 * max(abs(row["residual"]) for row in fitted) or 0.1
    residuals = [
        no_error(),
        points.encode(
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
            note,
        ),
        Panel(
            "residuals",
            "Residuals",
            "Scatter of measured minus predicted delta_loss against seq_len.",
            layered(residuals, 320),
            note,
        ),
    )


def no_error() -> alt.Chart:
    """Return the line of residuals where a run measured what the law predicts."""
    zero = alt.Chart(data([{"zero": 0}])).mark_rule()
    return named_line(zero.encode(y="zero:Q"), "measured as predicted")
