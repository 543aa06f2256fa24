"""Phase diagram of a run: p of its tokens by position, from before training to after.

Shapes: S steps, l tokens, C columns of the figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from pmlray.law import TokenRun, token_table
from pmlray.study.findings.placed_law import rank_of
from pmlray.study.report.figures.style import Panel, data, tips

# More columns than this would be too thin to be visible on a screen.
MOST_COLUMNS = 320


def phase_panels(runs: Sequence[TokenRun]) -> tuple[Panel, ...]:
    """Draw the phase diagram of one of the runs whose tokens were kept.

    It is the run that ends most evenly divided between tokens above and below 0.5; the larger of
    equals.
    """
    traced = [run for run in runs if run.observation.token_p_curve]
    if not traced:
        return ()
    return (_panel(max(traced, key=_divided)),)


def _divided(run: TokenRun) -> tuple[int, int]:
    sure = int((run.p > 0.5).sum())
    return min(sure, run.p.size - sure), run.p.size


def _panel(run: TokenRun) -> Panel:
    steps, p_SL = token_table(run)
    width = -(-p_SL.shape[1] // MOST_COLUMNS)
    starts = np.arange(0, p_SL.shape[1], width)
    sizes = np.diff(np.append(starts, p_SL.shape[1]))
    p_SC = np.add.reduceat(p_SL, starts, axis=1) / sizes
    rows = [
        {"token": start, "end": start + size, "step": step, "p": round(p, 3)}
        for step, p_C in zip(steps.tolist(), p_SC.tolist(), strict=True)
        for start, size, p in zip(starts.tolist(), sizes.tolist(), p_C, strict=True)
    ]
    o = run.observation
    pooled = f", means of {width} neighbours" if width > 1 else ""
    chart = (
        alt.Chart(data(rows))
        .mark_rect()
        .encode(
            x=alt.X(
                "token",
                type="quantitative",
                title="token of the text",
                scale=alt.Scale(domain=[0, p_SL.shape[1]], nice=False),
                axis=alt.Axis(grid=False, tickCount=5),
            ),
            x2="end",
            y=alt.Y(
                "step",
                type="ordinal",
                title="optimiser steps taken",
                axis=alt.Axis(grid=False, format=",d"),
            ),
            # A diverging scheme, so that 0.5 stands out.
            color=alt.Color(
                "p",
                type="quantitative",
                scale=alt.Scale(domain=[0, 1], domainMid=0.5, scheme="blueorange", reverse=True),
                legend=alt.Legend(title="p", values=[0, 0.5, 1], format=".1f"),
            ),
            tooltip=tips("token", "step", "p"),
        )
        .properties(height=280)
    )
    return Panel(
        "phase-diagram",
        f"p of each token while {rank_of(o.point)} learns {o.supervised_tokens:,} tokens{pooled}",
        f"Heat map of the probability of {o.supervised_tokens} tokens (sequence {o.sequence_id},"
        f" seed {o.seed}) by their place and by optimiser steps, from none to {steps[-1]}.",
        chart,
    )
