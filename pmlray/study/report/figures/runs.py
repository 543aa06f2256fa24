"""Figures of the runs: recall, and its cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import altair as alt

from pmlray.study.findings.placed_law import rank_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import (
    placed_row,
    placed_tips,
    placement_colour,
    placement_shape,
    rank_rows,
)
from pmlray.study.report.figures.style import (
    QUARTERS,
    ChartRow,
    Panel,
    data,
    drawn_note,
    layered,
    log_axis,
    named_line,
    observation_row,
    thinned,
    tips,
)
from pmlray.types import METHODS, Observation

LN2 = math.log(2.0)
MAX_TOKENS_SHOWN = 600
_HEATS = (
    ("final_loss", "Final loss", "nats per token"),
    ("token_recall", "Token recall", "share of tokens"),
    ("exact_recall", "Exact recall", "share of records"),
)
# From this share of the scale on, viridis is light enough for black text.
_BLACK_INK_FROM = 0.45
# Most bars of rounds that can be told apart.
MOST_BARS = 60


def heat_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw final loss, token recall and exact recall of SFT over rank and length.

    Replicates are averaged. A cell shows the runs with the most optimiser steps measured there.
    Several placements have a row for each of their ranks.
    """
    cells = _cells([o for o in result.observations if o.method == "sft"], result.placements)
    if not cells:
        return ()
    by_rank, y = rank_rows(cells, result.placements)
    n_rows = len({(row.get("placement"), row["lora_rank"]) for row in cells})
    worst = max(row["final_loss"] for row in cells) or 1.0
    panels = []
    for name, title, unit in _HEATS:
        falling = name == "final_loss"
        top = worst if falling else 1.0
        light = f"datum.{name} >= {_BLACK_INK_FROM}"
        if falling:
            light = f"datum.{name} <= {(1.0 - _BLACK_INK_FROM) * top}"
        scale = alt.Scale(domain=[0, top], nice=False, reverse=falling)
        base = alt.Chart(data(cells)).encode(
            x=alt.X(
                "seq_len", type="ordinal", axis=alt.Axis(labelAngle=0, format=",d", grid=False)
            ),
            y=y,
            tooltip=tips(
                *placed_tips(result),
                *("lora_rank", "seq_len", "train_steps", "n_runs"),
                *("final_loss", "token_recall", "exact_recall"),
            ),
        )
        colour = alt.Color(
            name, type="quantitative", scale=scale, legend=alt.Legend(title=f"{name}, {unit}")
        )
        chart = [
            base.mark_rect().encode(color=colour),
            base.mark_text(fontSize=11).encode(
                text=alt.Text(name, type="quantitative", format=".2f"),
                color=alt.condition(light, alt.value("#000000"), alt.value("#ffffff")),
            ),
        ]
        panels.append(
            Panel(
                "heat-" + name.replace("_", "-"),
                title,
                f"Heat map of {name} over seq_len and {by_rank}, mean over replicates; the"
                " lighter the better.",
                layered(chart, 34 * n_rows),
            )
        )
    return tuple(panels)


def _cells(runs: Sequence[Observation], names: Sequence[str]) -> list[ChartRow]:
    by_cell: dict[tuple[str, int, int], list[Observation]] = {}
    for o in runs:
        place = o.point.placement if names else None
        by_cell.setdefault((place or "", o.point.lora_rank, o.point.seq_len), []).append(o)
    rows: list[ChartRow] = []
    for (_, rank, length), measured in sorted(by_cell.items()):
        steps = max(o.point.train_steps for o in measured)
        used = [o for o in measured if o.point.train_steps == steps]
        row: ChartRow = {"lora_rank": rank, "seq_len": length, "train_steps": steps}
        if names:
            row = placed_row(used[0].point) | row
        row["n_runs"] = len(used)
        row["final_loss"] = round(sum(o.final_loss for o in used) / len(used), 5)
        row["token_recall"] = round(sum(o.recall.token for o in used) / len(used), 5)
        row["exact_recall"] = round(sum(o.recall.exact for o in used) / len(used), 5)
        rows.append(row)
    return rows


def chosen_runs(result: SearchResult) -> tuple[tuple[str, Observation], ...]:
    """Choose up to 4 SFT runs to show in detail: the best, two nearest ln 2, the worst."""
    runs = [o for o in result.observations if o.method == "sft" and o.token_p]
    ranked = sorted(runs, key=lambda o: o.final_loss)
    if len(ranked) < 3:
        return tuple(("measured", o) for o in ranked)
    inner = sorted(ranked[1:-1], key=lambda o: abs(o.final_loss - LN2))[:2]
    middle = [("nearest to ln 2", o) for o in sorted(inner, key=lambda o: o.final_loss)]
    return (("best", ranked[0]), *middle, ("worst", ranked[-1]))


def token_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw p of each token at the end of the chosen runs, with the 0.5 line."""
    panels = []
    half = alt.Chart(data([{"p": 0.5}])).mark_rule()
    for i, (why, o) in enumerate(chosen_runs(result)):
        wrong = set(o.wrong_tokens)
        every = -(-len(o.token_p) // MAX_TOKENS_SHOWN)
        rows = [
            {"token": t, "p": round(p, 4), "argmax": "wrong" if t in wrong else "right"}
            for t, p in list(enumerate(o.token_p))[::every]
        ]
        dots = alt.Chart(data(rows)).mark_point(filled=True, size=26, opacity=0.85)
        chart = [
            named_line(half.encode(y="p:Q"), "sure to be decoded above"),
            dots.encode(
                x=alt.X(
                    "token",
                    type="quantitative",
                    title="token of the text",
                    scale=alt.Scale(domain=[0, max(1, len(o.token_p) - 1)], nice=False),
                    axis=alt.Axis(grid=False, tickCount=5),
                ),
                y=alt.Y(
                    "p",
                    type="quantitative",
                    scale=alt.Scale(domain=[0, 1]),
                    axis=alt.Axis(values=QUARTERS, format=".2~f"),
                ),
                color=alt.Color(
                    "argmax",
                    type="nominal",
                    title="argmax",
                    scale=alt.Scale(domain=["right", "wrong"]),
                ),
                shape=alt.Shape(
                    "argmax",
                    type="nominal",
                    scale=alt.Scale(domain=["right", "wrong"], range=["circle", "triangle-up"]),
                ),
                tooltip=tips("token", "p", "argmax"),
            ),
        ]
        point = o.point
        panels.append(
            Panel(
                f"token-p-{i + 1}",
                f"{why.capitalize()}: {rank_of(point)}, {o.supervised_tokens:,} tokens,"
                f" {point.train_steps:,} steps, final loss {o.final_loss:.3f}"
                f" (text {o.sequence_id}, seed {o.seed})",
                f"Probability of each of {o.supervised_tokens} tokens at the end of training"
                f" (sequence {o.sequence_id}, seed {o.seed}), with a line at 0.5;"
                f" {o.recall.n_stubborn} tokens are at or below it.",
                layered(chart, 220),
                drawn_note(len(rows), len(o.token_p), "tokens", f"1 in {every}"),
            )
        )
    return tuple(panels)


def cost_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw gpu_seconds by round, stacked by phase, and of every run against its length."""
    spent: dict[tuple[int, str], float] = defaultdict(float)
    for o in result.observations:
        spent[o.round, o.phase] += o.gpu_seconds
    for failure in result.failures:
        spent[failure.round, "failed"] += failure.gpu_seconds
    if not spent:
        return ()
    bars, together = _bars(spent)
    by_round = (
        alt.Chart(data(bars))
        .mark_bar()
        .encode(
            x=alt.X("round", type="ordinal", axis=alt.Axis(labelAngle=0, grid=False)),
            y=alt.Y("gpu_seconds", type="quantitative", stack="zero"),
            color=alt.Color(
                "kind",
                type="nominal",
                title="spent on",
                scale=alt.Scale(domain=["law", "memft", "failed"]),
            ),
            tooltip=tips("round", "kind", "gpu_seconds"),
        )
    )
    panels = [
        Panel(
            "cost-by-round",
            "Cost of each round",
            "Bars of the gpu_seconds that each round cost, stacked by what they were spent on.",
            by_round.properties(height=260),
            f"each bar is {together} rounds, named by the first" if together > 1 else "",
        )
    ]
    if result.observations:
        rows = [observation_row(o) for o in thinned(result.observations)]
        lengths = [row["supervised_tokens"] for row in rows]
        scale, axis = log_axis(lengths, "seq_len, supervised tokens (log)")
        dots = alt.Chart(data(rows)).mark_point(size=60, strokeWidth=2, opacity=0.9)
        ran = [m for m in METHODS if any(row["method"] == m for row in rows)]
        methods, names = alt.Scale(domain=ran), result.placements
        colour = alt.Color("method", type="nominal", scale=methods)
        shape = alt.Shape("method", type="nominal", scale=methods)
        if names:
            colour = placement_colour(names)
            shape = placement_shape(names) if len(ran) == 1 else shape
        per_run = dots.encode(
            x=alt.X("supervised_tokens", type="quantitative", scale=scale, axis=axis),
            y=alt.Y("gpu_seconds", type="quantitative", title="gpu_seconds of one run"),
            color=colour,
            shape=shape,
            tooltip=tips(
                *placed_tips(result),
                *("method", "lora_rank", "supervised_tokens", "train_steps", "round"),
                "gpu_seconds",
            ),
        )
        panels.append(
            Panel(
                "cost-by-length",
                "Cost of each run",
                "Scatter of every run's gpu_seconds against its seq_len, by"
                f" {'placement and ' if names else ''}method.",
                per_run.properties(height=260),
                drawn_note(len(rows), len(result.observations)),
            )
        )
    return tuple(panels)


def _bars(spent: Mapping[tuple[int, str], float]) -> tuple[list[ChartRow], int]:
    """Return gpu_seconds by round and kind as rows, and how many rounds make one bar."""
    together = -(-(1 + max(r for r, _ in spent)) // MOST_BARS)
    bars: dict[tuple[int, str], float] = defaultdict(float)
    for (r, kind), seconds in spent.items():
        bars[r - r % together, kind] += seconds
    rows: list[ChartRow] = [
        {"round": r, "kind": kind, "gpu_seconds": round(seconds, 3)}
        for (r, kind), seconds in sorted(bars.items())
    ]
    return rows, together
