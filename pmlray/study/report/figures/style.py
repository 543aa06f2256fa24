"""Style of all figures: their form, colours for light and dark, axes and tooltips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import altair as alt
import numpy as np

from pmlray.study.report.drawing import svg_of
from pmlray.types import Observation

ChartRow = dict[str, Any]
AnyChart = alt.Chart | alt.LayerChart

Row = TypeVar("Row")

# Most dots of a figure: more hide each other, and a page of all figures would take long to open.
MOST_DOTS = 1000
# Grey that stands out from a light page and from a dark one.
GREY = "#7d8590"
EXPORT_WIDTH = 640
QUARTERS = [0, 0.25, 0.5, 0.75, 1]
EXPORT = {"font": "Liberation Sans, Arial, Helvetica, sans-serif", "padding": 12}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif'
# Viridis without the end that is too close to the page's background; the categories are Okabe and
# Ito's.
_LIGHT = {
    "ink": "#1c2128",
    "soft": "#57606a",
    "grid": "#e1e5ea",
    "extent": [0.0, 0.72],
    "category": ["#0072b2", "#c75000", "#a8558c", "#008a64", "#6b6b00"],
}
_DARK = {
    "ink": "#e6e9ed",
    "soft": "#a3acb8",
    "grid": "#313843",
    "extent": [0.35, 1.0],
    "category": ["#56b4e9", "#f09a3e", "#d99ac0", "#2fc393", "#d6cf4e"],
}
_FORMATS = {
    "lora_rank": ",d",
    "seq_len": ",d",
    "supervised_tokens": ",d",
    "train_steps": ",d",
    "gpu_seconds": ",.1f",
    "n_params": ",d",
    "effective_params": ",.0f",
}
_WHOLE = {"order", "round", "sequence_id", "seed", "n_runs", "token", "n_texts", "position"}
_WORDS = {
    *("method", "phase", "argmax", "pair", "kind", "role", "row", "figure", "verdict"),
    "placement",
}


@dataclass(frozen=True)
class Panel:
    """Chart of the report.

    `key` names its element and file, `description` is its text alternative; `note`: how many of
    the runs or tokens are drawn, where these are not all.
    """

    key: str
    title: str
    description: str
    chart: AnyChart
    note: str = ""

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite specification, which fills the width of its container.

        It is not held against Vega-Lite's schema, which takes 0.1 s; tests do that.
        """
        sized = self.chart.properties(
            width="container",
            description=self.description,
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
        return sized.to_dict(validate=False)

    def svg(self, spec: Mapping[str, Any]) -> str:
        """Return the figure of `spec()` as a stand-alone SVG for a white page."""
        title = {"text": self.title} | ({"subtitle": self.note} if self.note else {})
        fixed = {**spec, "width": EXPORT_WIDTH, "title": title}
        return svg_of(fixed, theme(dark=False) | EXPORT)


def theme(*, dark: bool) -> dict[str, Any]:
    """Return Vega-Lite's config for a dark or a light page."""
    colours = _DARK if dark else _LIGHT
    ink, soft, grid = colours["ink"], colours["soft"], colours["grid"]
    return {
        "background": "transparent" if dark else "white",
        "font": FONT,
        "padding": 4,
        "view": {"stroke": None},
        "title": {"color": ink, "subtitleColor": soft, "anchor": "start", "fontSize": 14},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "domainColor": soft,
            "tickColor": soft,
            "gridColor": grid,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelOverlap": "greedy",
            "labelSeparation": 4,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "orient": "top",
            "columns": 8,
            "labelLimit": 0,
            # A phone has no room for two legends side by side.
            "layout": {"top": {"anchor": "start", "direction": "vertical", "margin": 6}},
            "symbolOpacity": 1,
            "gradientLength": 180,
        },
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": soft},
        "line": {"color": colours["category"][0]},
        "point": {"color": colours["category"][0]},
        "range": {
            "category": colours["category"],
            "ordinal": {"scheme": "viridis", "extent": colours["extent"]},
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis"},
        },
    }


def data(rows: Iterable[ChartRow]) -> alt.InlineData:
    """Return rows as inline data of a chart."""
    # Each step of building a chart copies lists, and leaves tuples as they are.
    return alt.InlineData(values=tuple(rows))


def thinned(rows: Sequence[Row], most: int = MOST_DOTS) -> Sequence[Row]:
    """Return the rows, or `most` of them in their order, chosen at random and always the same."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]


def drawn_note(n_drawn: int, n: int, what: str = "runs", which: str = "chosen at random") -> str:
    """Return how many of n are drawn, for a figure's caption; empty where all are."""
    return "" if n_drawn == n else f"{n_drawn:,} of {n:,} {what} are drawn, {which}"


def named_line(chart: alt.Chart, name: str, dash: Sequence[int] = (5, 4)) -> alt.Chart:
    """Return a line that no colour names with its name in a legend; one such line a figure.

    name: short enough for a phone's width. dash: pixels drawn and left out.
    """
    scale = alt.Scale(domain=[name], range=[list(dash)])
    # A legend's symbol of 100 square pixels has no room for a dash and a gap.
    legend = alt.Legend(title=None, symbolSize=500, symbolStrokeWidth=2)
    dashes = alt.StrokeDash("line", type="nominal", scale=scale, legend=legend)
    return chart.transform_calculate(line=json.dumps(name)).encode(strokeDash=dashes)


def dots(rows: Iterable[ChartRow], size: float = 64, *, clip: bool = False) -> alt.Chart:
    """Return rows as filled dots with a rim, which stay apart where they overlap; clip: hide those
    beyond the axes."""
    return alt.Chart(data(rows)).mark_point(
        filled=True, size=size, opacity=0.95, stroke=GREY, strokeWidth=0.6, clip=clip
    )


def layered(charts: Sequence[AnyChart], height: int) -> alt.LayerChart:
    """Layer charts, the first at the bottom; height in pixels."""
    return alt.LayerChart(layer=list(charts)).properties(height=height)


def tips(*names: str) -> list[alt.Tooltip]:
    """Return tooltips under the fields' own names, each with a suitable number format."""
    shown = []
    for name in names:
        kind = "nominal" if name in _WORDS | _WHOLE else "quantitative"
        if kind == "nominal":
            shown.append(alt.Tooltip(name, type=kind))
        else:
            shown.append(alt.Tooltip(name, type=kind, format=_FORMATS.get(name, ".4~f")))
    return shown


def log_axis(values: Sequence[float], title: str) -> tuple[alt.Scale, alt.Axis]:
    """Return a log scale over the values, and an axis with ticks at the values alone."""
    scale = alt.Scale(
        type="log", domain=[min(values) / 1.12, max(values) * 1.12], nice=False, clamp=False
    )
    axis = alt.Axis(
        values=sorted(set(values)), title=title, format=",d", grid=False, minExtent=0, tickCount=8
    )
    return scale, axis


def padded(values: Sequence[float], share: float = 0.06) -> list[float]:
    """Return the range of the values, a little wider on both sides."""
    low, high = min(values), max(values)
    pad = share * (high - low) or 0.1 * abs(high) or 0.1
    return [low - pad, high + pad]


def observation_row(o: Observation) -> ChartRow:
    """Return an observation as one row, under the names of its fields."""
    at = {} if o.point.placement is None else {"placement": o.point.placement}
    return {
        **at,
        "lora_rank": o.point.lora_rank,
        "seq_len": o.point.seq_len,
        "supervised_tokens": o.supervised_tokens,
        "train_steps": o.point.train_steps,
        "method": o.method,
        "phase": o.phase,
        "round": o.round,
        "sequence_id": o.sequence_id,
        "seed": o.seed,
        "base_loss": round(o.base_loss, 5),
        "final_loss": round(o.final_loss, 5),
        "delta_loss": round(o.delta_loss, 5),
        "token_recall": o.recall.token,
        "prefix_recall": o.recall.prefix,
        "exact_recall": o.recall.exact,
        "gpu_seconds": round(o.gpu_seconds, 3),
    }
