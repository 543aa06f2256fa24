"""Figure of the answer: recall against rank, with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import scipy

from pmlray.study.findings.answer import PLURALS, Tried, answer_point, tried_points, unit_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import placement_colour, placement_shape
from pmlray.study.report.figures.style import (
    GREY,
    QUARTERS,
    AnyChart,
    ChartRow,
    Panel,
    data,
    dots,
    layered,
    log_axis,
    tips,
)

LEVEL = 0.9
# Most lengths in the figure: those about the answer's.
MOST_LENGTHS = 4
# Ratio between the places of neighbouring lengths at one rank, so that their bars stay apart.
APART = 1.045


def answer_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw what plain fine-tuning recalled at each rank, at the lengths about the answer's, or of
    several placements at the answer's alone; empty before anything is measured.

    Recall is that of whole texts or records with its interval, or of tokens where every point has a
    single one.
    """
    tried = tried_points(result.observations)
    if not tried:
        return ()
    best, whole = answer_point(tried)
    cells = _cells(tried, best, bool(result.placements))
    units = PLURALS[unit_of(result)]
    exact = any(t.n > 1 for t in cells)
    what = f"share of {units} recalled whole" if exact else "share of tokens recalled"
    rows = [_row(t, exact) for t in cells]
    names = result.placements
    x, colour = _by_placement(rows, names) if names else _by_length(rows)
    # Room for the answer's name above its dot.
    y = alt.Scale(domain=[-0.03, 1.14], nice=False)
    axis = alt.Axis(values=QUARTERS, format="%")
    height = alt.Y("recalled", type="quantitative", scale=y, axis=axis, title=what)
    shown = (*(("placement", "n_params") if result.placements else ()), "lora_rank", "seq_len")
    shown += ("train_steps", "recalled", "low", "high", "n", "n_runs", "gpu_seconds")
    base = alt.Chart(data(rows)).encode(x=x, color=colour)
    layers: list[AnyChart] = [base.mark_line(strokeWidth=1.5, opacity=0.7).encode(y=height)]
    if exact:
        layers.append(
            base.mark_rule(strokeWidth=2).encode(
                y=alt.Y("low", type="quantitative", scale=y, axis=axis, title=what), y2="high"
            )
        )
    layers += _answer_marks(_row_of(best, cells, rows), rows, x, height, whole)
    points = dots(rows, 80).encode(x=x, y=height, color=colour, tooltip=tips(*shown))
    layers.append(points.encode(shape=placement_shape(names)) if names else points)
    steps = {t.point.train_steps for t in cells}
    at = f" in {min(steps):,} steps" if len(steps) == 1 else ", each with the most steps measured"
    length = f", {best.point.seq_len:,} tokens" if result.placements else ""
    interval = "with 90% intervals" if exact else "one text a point, so without intervals"
    return (
        Panel(
            "recall-by-rank",
            f"What each {'adapter' if result.placements else 'rank'} recalls{length}{at},"
            f" {interval}",
            f"Dot plot of the {what} against"
            f" {'adapter parameters' if result.placements else 'lora_rank'}, {interval}.",
            layered(layers, 300),
        ),
    )


def _cells(tried: Sequence[Tried], best: Tried, placed: bool) -> list[Tried]:
    """Return the points to draw: of each adapter and length that with the most steps."""
    lengths = sorted({t.point.seq_len for t in tried})
    at = lengths.index(best.point.seq_len)
    first = max(0, min(at - MOST_LENGTHS // 2, len(lengths) - MOST_LENGTHS))
    wanted = {best.point.seq_len} if placed else {*lengths[first : first + MOST_LENGTHS]}
    # Points come in the order of their steps.
    cells = {t.point.family: t for t in tried if t.point.seq_len in wanted}
    return [*cells.values()]


def _row(t: Tried, exact: bool) -> ChartRow:
    low, high = clopper_pearson(t.n_right, t.n)
    place = {} if t.point.placement is None else {"placement": t.point.placement}
    return {
        **place,
        "lora_rank": t.point.lora_rank,
        "n_params": t.size,
        "seq_len": t.point.seq_len,
        "train_steps": t.point.train_steps,
        "recalled": round(t.n_right / t.n if exact else t.token_recall, 4),
        "low": round(low, 4) if exact else None,
        "high": round(high, 4) if exact else None,
        "n": t.n,
        "n_runs": t.n_runs,
        "gpu_seconds": round(t.gpu_seconds, 3),
    }


def clopper_pearson(n_right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of a share of which n_right of n were seen (DOI 10.1093/biomet/26.4.404).

    As if texts or records were independent of each other.
    """
    tail, beta = (1.0 - level) / 2.0, scipy.stats.beta
    low = float(beta.ppf(tail, n_right, n - n_right + 1)) if n_right else 0.0
    high = float(beta.ppf(1.0 - tail, n_right + 1, n - n_right)) if n_right < n else 1.0
    return low, high


def _by_length(rows: list[ChartRow]) -> tuple[alt.X, alt.Color]:
    """Give each row its place along the rank, and return that axis and the colours of lengths."""
    lengths = sorted({row["seq_len"] for row in rows})
    for row in rows:
        beside = lengths.index(row["seq_len"]) - (len(lengths) - 1) / 2
        row["at"] = float(f"{row['lora_rank'] * APART**beside:.5g}")
    scale, axis = log_axis([row["lora_rank"] for row in rows], "lora_rank (log)")
    scale.domain = [min(row["at"] for row in rows) / 1.15, max(row["at"] for row in rows) * 1.15]
    x = alt.X("at", type="quantitative", scale=scale, axis=axis)
    legend = alt.Legend(format=",d", symbolType="circle")
    return x, alt.Color("seq_len", type="ordinal", title="seq_len", legend=legend)


def _by_placement(rows: list[ChartRow], names: tuple[str, ...]) -> tuple[alt.X, alt.Color]:
    """Give each row its place along the adapters' parameters, and return that axis and the colours
    of placements."""
    for row in rows:
        row["at"] = row["n_params"]
    ends = [min(row["at"] for row in rows) / 1.3, max(row["at"] for row in rows) * 1.3]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    axis = alt.Axis(grid=False, tickCount=5, format="~s", title="adapter parameters (log)")
    return alt.X("at", type="quantitative", scale=scale, axis=axis), placement_colour(names)


def _row_of(best: Tried, cells: Sequence[Tried], rows: list[ChartRow]) -> ChartRow | None:
    """Return the row of the answer, None where more steps are drawn in its place."""
    return next((row for t, row in zip(cells, rows, strict=True) if t == best), None)


def _answer_marks(
    row: ChartRow | None, rows: list[ChartRow], x: alt.X, y: alt.Y, whole: bool
) -> list[AnyChart]:
    """Return a ring about the answer's dot, and its name beside it."""
    if row is None:
        return []
    right = row["at"] ** 2 > min(r["at"] for r in rows) * max(r["at"] for r in rows)
    named = {**row, "name": f"{'the answer' if whole else 'nearest'}: rank {row['lora_rank']}"}
    base = alt.Chart(data([named])).encode(x=x, y=y)
    text = base.mark_text(
        align="right" if right else "left", dx=8 if right else -8, dy=-20, fontWeight="bold"
    )
    ring = base.mark_point(filled=False, size=260, strokeWidth=2, color=GREY, opacity=1)
    return [ring, text.encode(text="name:N")]
