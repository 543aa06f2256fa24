"""Figures of a comparison's tuning: what each method recalls at each learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from pmlray.study.comparison.tuning import TriedRate
from pmlray.study.report.figures.memft import SHAPES, SHORT_METHOD, point_label
from pmlray.study.report.figures.style import (
    QUARTERS,
    AnyChart,
    ChartRow,
    Panel,
    data,
    layered,
    log_axis,
    tips,
)

HEIGHT = 260


def rate_panels(tried: Sequence[TriedRate]) -> tuple[Panel, ...]:
    """Draw each method's mean exact recall on the tuning texts against the rate, a panel a point.

    Upright lines reach from the least to the largest recall of a run.
    """
    points = dict.fromkeys(t.point for t in tried)
    return tuple(
        _panel(number, [t for t in tried if t.point == point])
        for number, point in enumerate(points, start=1)
    )


def _panel(number: int, tried: Sequence[TriedRate]) -> Panel:
    rows: list[ChartRow] = [
        {
            "method": SHORT_METHOD[t.method],
            "learning_rate": t.learning_rate,
            "exact_recall": round(t.exact_recall, 5),
            "low": round(t.low, 5),
            "high": round(t.high, 5),
            "n_runs": t.n_runs,
        }
        for t in tried
    ]
    shown = list(dict.fromkeys(row["method"] for row in rows))
    scale, _ = log_axis([t.learning_rate for t in tried], "learning_rate")
    axis = alt.Axis(
        values=sorted({t.learning_rate for t in tried}),
        title="learning_rate",
        format="~g",
        grid=False,
    )
    share = alt.Scale(domain=[-0.03, 1.03], nice=False)
    x = alt.X("learning_rate", type="quantitative", scale=scale, axis=axis)
    recalls = alt.Axis(values=QUARTERS, format=".2~f", title="exact_recall on the tuning texts")
    y = alt.Y("exact_recall", type="quantitative", scale=share, axis=recalls)
    colour = alt.Color("method", type="nominal", scale=alt.Scale(domain=shown), title=None)
    shape = alt.Shape(
        "method",
        type="nominal",
        scale=alt.Scale(domain=shown, range=list(SHAPES)[: len(shown)]),
        title=None,
    )
    each = alt.Chart(data(rows)).encode(x=x, color=colour)
    layers: list[AnyChart] = [
        each.mark_rule(opacity=0.35).encode(
            y=alt.Y("low", type="quantitative", scale=share, axis=recalls), y2="high"
        ),
        each.mark_line().encode(y=y),
        each.mark_point(filled=True, size=70, opacity=1).encode(
            y=y,
            shape=shape,
            tooltip=tips("method", "learning_rate", "exact_recall", "low", "high", "n_runs"),
        ),
    ]
    label = point_label(tried[0].point)
    return Panel(
        f"rates-{number}",
        f"Recall against learning rate, {label}",
        f"Lines of each method's mean exact recall on the tuning texts at {label} against the peak"
        " learning rate, with the range of its runs.",
        layered(layers, HEIGHT),
    )
