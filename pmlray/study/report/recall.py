"""Recall against loss: figures, tables and their text."""

from __future__ import annotations

import altair as alt
import numpy as np

from pmlray.law import RecallLaw, TokenRun, token_runs
from pmlray.law.recall.transition import Transition
from pmlray.study.findings.recall import RecallResult
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import placement_shape
from pmlray.study.report.figures.style import (
    QUARTERS,
    ChartRow,
    Panel,
    data,
    dots,
    drawn_note,
    layered,
    named_line,
    observation_row,
    thinned,
    tips,
)
from pmlray.study.report.figures.transition import phase_panels
from pmlray.study.report.tables import Cell, Table, number, percent

# Of losses, nats per token, which are rounded to as many digits.
LEAST_DRAWN = 1e-5
CURVE_POINTS = 30
WANTED_EXACT = (0.5, 0.9, 0.99)
_SHOWN = ("lora_rank", "seq_len", "train_steps", "sequence_id", "seed")
_RECALLS = ("token_recall", "exact_recall")


def recall_text(found: RecallResult, rule: str, placements: tuple[str, ...] = ()) -> str:
    """Explain what exact recall counts (`rule`), recall around p = 0.5, and its law; placements:
    names of these where there are several."""
    text = f"Exact recall counts {rule}. {_law_text(found)}"
    if placements and found.transition is not None:
        text += " Recall goes by the loss alone here: runs of all placements are taken together."
    return text


def _law_text(found: RecallResult) -> str:
    if found.transition is None:
        return f"No law of recall: {found.why_not}."
    text = _transition_text(found.transition)
    if found.law is None:
        return f"{text} No law of recall: {found.why_not}."
    return (
        f"{text} Curves are the fitted law of recall, which is one of the answers alone; points are"
        " runs. Where a run is one record,"
        " its exact recall is 0 or 1 and the curve says how often it is 1."
    )


def _transition_text(found: Transition) -> str:
    if found.sure_wrong:
        text = (
            f"WRONG MEASUREMENT: {found.sure_wrong:,} tokens with p above 0.5 count as not"
            " recalled, which cannot be; p and the argmax do not come from one pass."
        )
    elif found.sure_recalled is None:
        text = "No token holds more than half of the probability yet."
    else:
        text = "Every token that holds more than half of the probability is recalled."
    if (share := found.stubborn_recalled) is not None:
        text += f" Of the others, {percent(share)} are recalled all the same."
    if (onset := found.onset) is not None:
        text += (
            " Where a record's first token at or below 0.5 lies tells where it first fails with a"
            f" rank correlation of {number(onset.value, 3)} (90%: {number(onset.low, 3)} to"
            f" {number(onset.high, 3)}, {found.n_failed:,} records that fail)."
        )
    if (passed := found.crossings) is not None:
        text += (
            f" Of {passed.n_tokens:,} tokens followed while they trained {passed.crossed:,} passed"
            f" 0.5, half of them between {percent(passed.early)} and {percent(passed.late)} of"
            f" their run's steps; {passed.lost:,} were above it and ended below."
        )
        if passed.by_base_p is not None:
            text += (
                " When they did goes with p before training by a rank correlation of"
                f" {number(passed.by_base_p, 3)}"
            )
            if passed.by_place is not None:
                text += f", with the place in the record by {number(passed.by_place, 3)}"
            text += "."
    return text


def recall_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw token and exact recall against the final loss, with the law where there is one.

    The last panel shows one run's tokens while it trains.
    """
    found = result.recall_result
    if found.transition is None:
        return ()
    runs = token_runs(result.observations)
    by_loss = (
        _panel(name, title, runs, found.law, result.placements)
        for name, title in (("token_recall", "Token recall"), ("exact_recall", "Exact recall"))
    )
    return (*by_loss, *phase_panels(runs))


def _panel(
    name: str,
    title: str,
    runs: tuple[TokenRun, ...],
    law: RecallLaw | None,
    placements: tuple[str, ...],
) -> Panel:
    losses = _drawn_losses(runs)
    x = alt.X(
        "final_loss",
        type="quantitative",
        title="final loss, nats per token (log)",
        scale=alt.Scale(type="log", domain=[min(losses) / 1.2, max(losses) * 1.2], nice=False),
        axis=alt.Axis(grid=False, tickCount=5, format=".2~g"),
    )
    y = alt.Y(
        name,
        type="quantitative",
        title=name,
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=QUARTERS, format=".2~f"),
    )
    columns = 8 if max(run.observation.point.seq_len for run in runs) < 1000 else 5
    colour = alt.Color(
        "seq_len",
        type="ordinal",
        title="seq_len",
        legend=alt.Legend(columns=columns, format=",d"),
    )
    shown = (*(("placement",) if placements else ()), *_SHOWN, "final_loss", *_RECALLS)
    drawn = [observation_row(run.observation) for run in thinned(runs)]
    drawn = [row | {"final_loss": max(row["final_loss"], LEAST_DRAWN)} for row in drawn]
    points = dots([{key: row[key] for key in shown} for row in drawn], 56)
    points = points.encode(x=x, y=y, color=colour, tooltip=tips(*shown))
    if placements:
        points = points.encode(shape=placement_shape(placements, alone=True))
    chart = [points]
    if law is not None:
        curves = _curve(law, name, runs)
        line = alt.Chart(data(curves)).mark_line(strokeWidth=2).encode(x=x, y=y)
        # With one record per run, recall depends on its length: each length has its own curve.
        coloured = "seq_len" in curves[0]
        named = line.encode(color=colour) if coloured else named_line(line, "law of recall", (1, 0))
        chart.insert(0, named)
    return Panel(
        name.replace("_", "-") + "-by-loss",
        f"{title} by final loss",
        f"Scatter of every run's {name} against its final loss, with the law of recall as curves.",
        layered(chart, 280),
        drawn_note(len(drawn), len(runs)),
    )


def _drawn_losses(runs: tuple[TokenRun, ...]) -> list[float]:
    """Return the final losses as they are drawn, nats per token: a logarithmic axis has no 0, where
    a run ends whose every probability rounds to 1."""
    return [max(run.observation.final_loss, LEAST_DRAWN) for run in runs]


def _curve(law: RecallLaw, name: str, runs: tuple[TokenRun, ...]) -> list[ChartRow]:
    losses = _drawn_losses(runs)
    along = np.geomspace(min(losses), max(losses), CURVE_POINTS)
    rows: list[ChartRow] = []
    for tokens, named in _record_lengths(law, runs):
        recall = law.predict(along, tokens)
        shares = recall.token if name == "token_recall" else recall.exact
        rows += [
            {"final_loss": round(loss, 6), name: round(share, 4), **named}
            for loss, share in zip(along.tolist(), shares.tolist(), strict=True)
        ]
    return rows


def _record_lengths(
    law: RecallLaw, runs: tuple[TokenRun, ...]
) -> list[tuple[float, dict[str, int]]]:
    """Return tokens per record, with the seq_len where it is the record's own."""
    if law.tokens_per_record is not None:
        return [(law.tokens_per_record, {})]
    lengths = sorted({run.observation.point.seq_len for run in runs})
    return [(float(length), {"seq_len": length}) for length in lengths]


def recall_tables(result: SearchResult) -> tuple[Table, ...]:
    """Return recall of one new run at the targets, and the loss that exact recall takes."""
    found = result.recall_result
    if found.law is None:
        return ()
    names = ("final_loss", "token", "prefix", "exact")
    rows: list[tuple[Cell, ...]] = []
    for forecast in found.forecasts:
        p = forecast.point
        row: list[Cell] = [p.placement] if result.placements else []
        row += [p.lora_rank, p.seq_len, p.train_steps]
        for estimate in (getattr(forecast, name) for name in names):
            row += [estimate.value, f"{number(estimate.low, 3)} to {number(estimate.high, 3)}"]
        rows.append(tuple(row))
    columns = ("lora_rank", "seq_len", "train_steps")
    columns = ("placement", *columns) if result.placements else columns
    columns += tuple(part for name in names for part in (name, f"{name} 90%"))
    lengths = _record_lengths(found.law, token_runs(result.observations))
    losses = tuple(
        (round(tokens), wanted, found.law.loss_for(wanted, tokens))
        for tokens, _ in lengths
        for wanted in WANTED_EXACT
    )
    return (
        Table("What one new run would recall at the targets", columns, tuple(rows)),
        Table(
            "Final loss at which a share of records is recalled whole",
            ("tokens a record", "exact recall", "final loss, nats per token"),
            losses,
        ),
    )
