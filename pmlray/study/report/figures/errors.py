"""Figures of the law's errors: what it predicts beside what was measured."""

from __future__ import annotations

import altair as alt

from pmlray.law import law_data, usable_points
from pmlray.study.findings.fitted_runs import fitted_runs
from pmlray.study.findings.placed_law import worths_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import AXIS_TITLES, DELTA, RUN_TIPS, fitted_points
from pmlray.study.report.figures.placed import (
    effective_params,
    placed_tips,
    placement_colour,
    placement_shape,
)
from pmlray.study.report.figures.style import (
    ChartRow,
    Panel,
    data,
    layered,
    log_axis,
    observation_row,
    padded,
    tips,
)


def residual_rows(result: SearchResult) -> list[ChartRow]:
    """Return every SFT run of the law as a row with the law's prediction.

    `predicted`, `residual` (nats per token, measured less predicted) and `role`, which says whether
    the run was fitted; of several placements `effective_params`, those of the reference that the
    adapter's are worth. Empty without a law; runs at a placement that the law has none of are left
    out.
    """
    law, observed = result.law, fitted_points(result)
    if law is None:
        return []
    used = usable_points(law_data(observed), law.fit.law.form)
    in_law = {o.run_key for o in fitted_runs(result.spec, observed)}
    worths = worths_of(law)
    rows: list[ChartRow] = []
    for o, kept in zip(observed, used.tolist(), strict=True):
        if o.point.placement not in result.fitted_places:
            continue
        row, place = observation_row(o), result.fitted_places[o.point.placement]
        own = law.fit.law if place is None else law.fit.law_at(place)
        at = (o.point.lora_rank, o.supervised_tokens, o.point.train_steps, o.base_loss)
        row["predicted"] = round(float(own.predict(*at)), 5)
        if place is not None:
            row["effective_params"] = effective_params(o, place, worths)
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
    shared = tips(*placed_tips(result), *RUN_TIPS, "predicted", "residual", "role")
    names = result.placements
    if names:
        dots = dots.encode(
            color=placement_colour(names), shape=placement_shape(names), tooltip=shared
        )
        # Shapes tell placements apart, so what was set aside is faint.
        dots = dots.encode(
            opacity=alt.condition("datum.role == 'fitted'", alt.value(0.95), alt.value(0.25))
        )
    else:
        dots = dots.encode(
            color=alt.Color("lora_rank", type="ordinal", title="lora_rank"), tooltip=shared
        )
    if len(fitted) < len(rows) and not names:
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
    scale, axis = log_axis([o.supervised_tokens for o in observed], AXIS_TITLES["seq_len"])
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
