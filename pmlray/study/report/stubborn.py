"""Tokens that fail more often than capacity explains: a figure, a table and their text."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from pmlray.study.findings.result import SearchResult
from pmlray.study.findings.stubborn_tokens import LEVEL, NEARLY_ALL, TokenTally, token_tallies
from pmlray.study.report.figures.style import (
    GREY,
    QUARTERS,
    ChartRow,
    Panel,
    data,
    drawn_note,
    layered,
    named_line,
    thinned,
    tips,
)
from pmlray.study.report.tables import Table

# Most tokens that are drawn of those that stand out, and of the others.
MOST_SHOWN = 500
_VERDICTS = ("capacity", "hard", "pathology")


def stubborn_tokens(result: SearchResult) -> tuple[TokenTally, ...]:
    """Return every supervised token of the plain SFT runs that kept their tokens, worst first."""
    return token_tallies([o for o in result.observations if o.method == "sft" and o.token_p])


def stubborn_text(found: Sequence[TokenTally]) -> str:
    """Describe how many tokens fail by themselves, and what that means."""
    if not found:
        return "No run kept the probability of its tokens."
    pathology = sum(t.verdict == "pathology" for t in found)
    hard = sum(t.verdict == "hard" for t in found)
    text = (
        "A token fails in a run that leaves it at p of at most 0.5; runs that differ in their"
        " budget alone count once. The line is how often it would fail if a run's failures fell on"
        " its tokens by chance, as they do where capacity alone is short."
    )
    if not pathology and not hard:
        return f"{text} None of {len(found):,} tokens fails significantly more often."
    return (
        f"{text} Of {len(found):,} tokens {hard + pathology:,} fail significantly more often"
        f" (family-wise error {LEVEL:g}), {pathology:,} of them where {100 * NEARLY_ALL:g}% of the"
        " other tokens are recalled."
    )


def stubborn_panels(found: Sequence[TokenTally]) -> tuple[Panel, ...]:
    """Draw the share of runs that fail each token by position, and that expected from capacity."""
    if not found:
        return ()
    told = [t for t in found if t.verdict != "capacity"]
    other = [t for t in found if t.verdict == "capacity"]
    rows = [_row(t) for t in (*thinned(other, MOST_SHOWN), *told[:MOST_SHOWN])]
    which = "chosen at random"
    if len(told) > MOST_SHOWN:
        which += f", but of those that stand out the first {MOST_SHOWN}"
    x = alt.X(
        "position",
        type="quantitative",
        title="token of the text",
        scale=alt.Scale(domain=[0, max(t.position for t in found) + 1], nice=False),
        axis=alt.Axis(grid=False, tickCount=5),
    )
    y = alt.Scale(domain=[0, 1])
    axis = alt.Axis(values=QUARTERS, format=".2~f")
    title = "share of runs that fail it"
    verdicts = alt.Scale(domain=list(_VERDICTS))
    shapes = alt.Scale(domain=list(_VERDICTS), range=["circle", "triangle-up", "diamond"])
    dots = alt.Chart(data(rows)).mark_point(filled=True, size=40, opacity=0.8)
    line = alt.Chart(data(_expected(found))).mark_line(color=GREY)
    height = alt.Y("expected", type="quantitative", scale=y, axis=axis, title=title)
    chart = [
        named_line(line.encode(x=x, y=height), "expected by chance"),
        dots.encode(
            x=x,
            y=alt.Y("failing", type="quantitative", scale=y, axis=axis, title=title),
            color=alt.Color("verdict", type="nominal", scale=verdicts, title="fails by"),
            shape=alt.Shape("verdict", type="nominal", scale=shapes, title="fails by"),
            tooltip=tips("sequence_id", "position", "failing", "expected", "n_runs", "verdict"),
        ),
    ]
    return (
        Panel(
            "stubborn-tokens",
            "How often each token fails",
            "Scatter of the share of runs that leave a token at or below p = 0.5 against its place"
            " in the text, with the share that capacity alone lets one expect as a line.",
            layered(chart, 280),
            drawn_note(len(rows), len(found), "tokens", which),
        ),
    )


def stubborn_table(found: Sequence[TokenTally]) -> Table:
    """Return the tokens that fail by themselves, the most suspicious first."""
    columns = ("sequence", "position", "failing runs", "of", "expected", "adjusted p", "verdict")
    told = [t for t in found if t.verdict != "capacity"]
    rows = tuple(
        (
            *(t.sequence_id, t.position, t.families_failed, t.families, t.expected),
            *(min(t.p_adjusted, t.recalling_p_adjusted), t.verdict),
        )
        for t in told
    )
    whole = "what pmlray tokens --json prints of the store"
    return Table("Tokens that fail more often than capacity explains", columns, rows, whole)


def _row(t: TokenTally) -> ChartRow:
    return {
        "sequence_id": t.sequence_id,
        "position": t.position,
        "failing": round(t.families_failed / t.families, 4),
        "expected": round(t.expected / t.families, 4),
        "n_runs": t.families,
        "verdict": t.verdict,
    }


def _expected(found: Sequence[TokenTally]) -> list[ChartRow]:
    """Return the share of failures expected from capacity at each position, over all sequences."""
    at: dict[int, list[float]] = {}
    for t in found:
        at.setdefault(t.position, []).append(t.expected / t.families)
    means = [
        (position, round(float(np.mean(shares)), 4)) for position, shares in sorted(at.items())
    ]
    # Keep the ends, and the points where the line turns.
    kept = [
        (position, mean)
        for i, (position, mean) in enumerate(means)
        if i in (0, len(means) - 1) or not means[i - 1][1] == mean == means[i + 1][1]
    ]
    every = -(-len(kept) // MOST_SHOWN)
    ends = [*kept[::every], kept[-1]]
    return [{"position": position, "expected": mean} for position, mean in dict(ends).items()]
