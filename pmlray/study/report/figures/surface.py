"""Figure of the law as a surface over rank and length, and the boundary of sure recall.

Shapes: R ranks, L lengths of the surface, N samples of the law.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
from numpy.typing import NDArray

from pmlray.law.sizing import SURE_LOSS
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import DELTA
from pmlray.study.report.figures.placed import PlacedRuns, by_placement
from pmlray.study.report.figures.run_rows import drawn_steps, fitted_points
from pmlray.study.report.figures.style import (
    AnyChart,
    ChartRow,
    Panel,
    data,
    layered,
    log_axis,
    named_line,
    tips,
)
from pmlray.types import Observation

COLUMNS, LINES = 32, 18
# Steps in rank within which the boundary is a line: finer than a pixel.
BOUNDARY_RANKS = 96
# Tail probability on either side of a 90 % interval.
TAIL = 0.05
_BOUNDARY = "#000000"
FloatArray = NDArray[np.float64]


def surface_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw the law over rank and length at the most steps measured, of several placements a figure
    each; empty without a law."""
    if result.law is None:
        return ()
    steps = drawn_steps(result)
    base_loss = float(
        np.mean([o.base_loss for o in fitted_points(result) if o.point.train_steps == steps])
    )
    panels = (
        _surface_panel(placed, result.spec.space.seq_len, steps, base_loss)
        for placed in by_placement(result)
        if placed.law is not None
    )
    return tuple(panel for panel in panels if panel is not None)


def _surface_panel(
    placed: PlacedRuns, design_lengths: Sequence[int], steps: int, base_loss: float
) -> Panel | None:
    measured = [o for o in placed.runs if o.point.train_steps == steps]
    ranks = sorted({*placed.ranks, *(p.lora_rank for p in placed.targets)})
    lengths = sorted({*design_lengths, *(p.seq_len for p in placed.targets)})
    if len(ranks) < 2 or len(lengths) < 2:
        return None
    surface = surface_rows(placed, ranks, lengths, steps)
    top = max(row["delta_loss"] for row in surface)
    (x_scale, x_axis) = log_axis(lengths, "seq_len, supervised tokens (log)")
    (y_scale, y_axis) = log_axis(ranks, "lora_rank (log)")
    x = alt.X("seq_len", type="quantitative", scale=x_scale, axis=x_axis)
    y = alt.Y("lora_rank", type="quantitative", scale=y_scale, axis=y_axis)
    shades = alt.Scale(domain=[0, top], nice=False, clamp=True, scheme="viridis")
    colour = alt.Color(
        "delta_loss", type="quantitative", scale=shades, legend=alt.Legend(title=DELTA)
    )
    layers: list[AnyChart] = [
        alt.Chart(data(surface))
        .mark_rect(clip=True)
        .encode(
            x=alt.X("left", type="quantitative", scale=x_scale, axis=x_axis),
            x2="right",
            y=alt.Y("below", type="quantitative", scale=y_scale, axis=y_axis),
            y2="above",
            color=colour,
            tooltip=tips("lora_rank", "seq_len", "delta_loss"),
        ),
    ]
    boundary = boundary_rows(placed, base_loss - SURE_LOSS, ranks, lengths, steps)
    if boundary:
        band = alt.Chart(data(boundary)).mark_area(opacity=0.2, clip=True, color=_BOUNDARY)
        low = alt.Y("low", type="quantitative", scale=y_scale, axis=y_axis)
        layers.append(band.encode(x=x, y=low, y2="high"))
    if inside := [row for row in boundary if row["lora_rank"] is not None]:
        line = alt.Chart(data(inside)).mark_line(strokeWidth=2.5, clip=True, color=_BOUNDARY)
        shown = tips("lora_rank", "seq_len", "low", "high")
        name = "mean final loss ln 2, with its 90% interval"
        layers.append(named_line(line.encode(x=x, y=y, tooltip=shown), name, (1, 0)))
    if measured:
        dots = alt.Chart(data(_means(measured))).mark_point(
            filled=True, size=110, opacity=1, stroke="#ffffff", strokeWidth=1.5
        )
        shown = tips("lora_rank", "seq_len", "n_runs", "delta_loss")
        layers.append(dots.encode(x=x, y=y, color=colour, tooltip=shown))
    return Panel(
        placed.key("law-surface"),
        placed.title(f"The law as a surface, {steps:,} steps"),
        placed.title(
            "Heat map of the delta_loss that the law predicts over seq_len and lora_rank, with what"
            " was measured as dots on the same scale, and the line along which the mean final loss"
            " is ln 2, with its 90% interval."
        ),
        layered(layers, 360),
    )


def surface_rows(
    placed: PlacedRuns, ranks: Sequence[int], lengths: Sequence[int], steps: int
) -> list[ChartRow]:
    """Return delta_loss of the law at the middle of R x L cells, with the area of each cell.

    The cells fill the range of ranks and lengths on a log scale.
    """
    r_R, l_L = _edges(ranks, LINES), _edges(lengths, COLUMNS)
    middle_R, middle_L = np.sqrt(r_R[1:] * r_R[:-1]), np.sqrt(l_L[1:] * l_L[:-1])
    # Cells overlap, since browsers leave hairlines between cells that only touch.
    top_R, right_L = r_R[1:] * (r_R[1] / r_R[0]) ** 0.5, l_L[1:] * (l_L[1] / l_L[0]) ** 0.5
    delta_RL = placed.predict(middle_R[:, None], middle_L[None, :], steps)
    return [
        {
            "lora_rank": float(f"{middle_R[i]:.4g}"),
            "seq_len": float(f"{middle_L[j]:.4g}"),
            "below": float(f"{r_R[i]:.5g}"),
            "above": float(f"{top_R[i]:.5g}"),
            "left": float(f"{l_L[j]:.5g}"),
            "right": float(f"{right_L[j]:.5g}"),
            "delta_loss": round(float(delta_RL[i, j]), 4),
        }
        for i in range(middle_R.size)
        for j in range(middle_L.size)
    ]


def boundary_rows(
    placed: PlacedRuns, wanted: float, ranks: Sequence[int], lengths: Sequence[int], steps: int
) -> list[ChartRow]:
    """Return the rank that lowers the loss by `wanted` nats per token at each length.

    Each comes with its 90% interval. Ends beyond the figure are clipped to its edge, ranks beyond
    it are None, and lengths whose whole interval is outside are left out.
    """
    ranks_R, lengths_L = _edges(ranks, BOUNDARY_RANKS), _edges(lengths, COLUMNS)
    samples = placed.samples
    assert samples is not None
    delta_NRL = samples.predict(ranks_R[:, None], lengths_L, steps)
    rows = []
    for length, delta_NR in zip(lengths_L.tolist(), delta_NRL.transpose(2, 0, 1), strict=True):
        drawn = np.sort(_rank_reaching(wanted, ranks_R, delta_NR))
        edge = int(TAIL * (drawn.size - 1))
        low, rank, high = drawn[[edge, drawn.size // 2, drawn.size - 1 - edge]].tolist()
        if high < ranks_R[0] or low > ranks_R[-1]:
            continue
        low, high = (float(np.clip(end, ranks_R[0], ranks_R[-1])) for end in (low, high))
        row: ChartRow = {"seq_len": float(f"{length:.5g}"), "low": low, "high": high}
        row["lora_rank"] = float(f"{rank:.4g}") if ranks_R[0] <= rank <= ranks_R[-1] else None
        rows.append(row)
    return rows


def _rank_reaching(wanted: float, ranks_R: FloatArray, delta_NR: FloatArray) -> FloatArray:
    """Return the first rank at which each of N laws reaches `wanted` nats per token, (N,): between
    two ranks as a line in log rank, 0 below all of them, inf where none reaches it."""
    reached = delta_NR >= wanted
    above = np.maximum(reached.argmax(axis=1), 1)
    each = np.arange(above.size)
    left, right = delta_NR[each, above - 1], delta_NR[each, above]
    share = np.divide(wanted - left, right - left, out=np.zeros_like(left), where=right > left)
    log_R = np.log(ranks_R)
    share = np.clip(share, 0.0, 1.0)
    found = np.exp(log_R[above - 1] + share * (log_R[above] - log_R[above - 1]))
    found = np.where(reached[:, 0], 0.0, found)
    return np.where(reached.any(axis=1), found, np.inf)


def _edges(values: Sequence[int], n: int) -> np.ndarray:
    """Return n + 1 edges of cells over the range of the axis that `log_axis` draws."""
    return np.geomspace(min(values) / 1.12, max(values) * 1.12, n + 1)


def _means(measured: Sequence[Observation]) -> list[ChartRow]:
    cells: dict[tuple[int, int], list[float]] = {}
    for o in measured:
        cells.setdefault((o.point.lora_rank, o.supervised_tokens), []).append(o.delta_loss)
    return [
        {
            "lora_rank": rank,
            "seq_len": length,
            "n_runs": len(found),
            "delta_loss": round(float(np.mean(found)), 5),
        }
        for (rank, length), found in sorted(cells.items())
    ]
