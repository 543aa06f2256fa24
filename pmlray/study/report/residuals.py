"""Residuals of the fit: figures, and tables of the remaining structure."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from pmlray.law import LawSummary, Sizing, entangled_pairs, param_correlations
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.errors import no_error
from pmlray.study.report.figures.placed import (
    effective_axis,
    placement_colour,
    placement_shape,
)
from pmlray.study.report.figures.run_rows import is_fitted, residual_rows, runs_note
from pmlray.study.report.figures.style import (
    ChartRow,
    Panel,
    dots,
    layered,
    log_axis,
    padded,
    tips,
)
from pmlray.study.report.tables import Cell, Table, number, percent

RESIDUAL = "measured − predicted, nats per token"
_TIPS = (
    *("lora_rank", "supervised_tokens", "train_steps", "sequence_id", "seed"),
    *("delta_loss", "predicted", "residual"),
)


def residual_panels(result: SearchResult) -> tuple[Panel, ...]:
    """Draw signed residuals of the fitted runs against rank, prediction, steps and sequence; of
    several placements against effective parameters in place of the rank, and by placement."""
    rows: list[ChartRow] = [row for row in residual_rows(result) if is_fitted(row)]
    if not rows:
        return ()
    names, note = result.placements, runs_note(result)
    if all("effective_params" in row for row in rows):
        log_x = effective_axis([row["effective_params"] for row in rows])
        by_size = ("params", "effective parameters", log_x)
    else:
        by_size = ("rank", "lora_rank", _log_x(rows, "lora_rank", "lora_rank (log)"))
    panels = [
        _panel(rows, names, note, *by_size),
        _panel(
            rows,
            names,
            note,
            "prediction",
            "predicted delta_loss",
            alt.X(
                "predicted",
                type="quantitative",
                title="predicted delta_loss, nats per token",
                scale=alt.Scale(domain=padded([row["predicted"] for row in rows]), nice=False),
                axis=alt.Axis(tickCount=6),
            ),
        ),
    ]
    if len({row["train_steps"] for row in rows}) > 1:
        axis = _log_x(rows, "train_steps", "train_steps (log)")
        panels.append(_panel(rows, names, note, "steps", "train_steps", axis))
    if len({row["pair"] for row in rows}) > 1:
        axis = alt.X(
            "pair",
            type="nominal",
            title="sequence, seed",
            axis=alt.Axis(labelAngle=0, grid=False),
        )
        panels.append(_panel(rows, names, note, "sequence", "sequence and seed", axis))
    if names:
        axis = alt.X("placement", type="nominal", sort=list(names), axis=alt.Axis(grid=False))
        panels.append(_panel(rows, names, note, "placement", "placement", axis))
    return tuple(panels)


def _log_x(rows: list[ChartRow], name: str, title: str) -> alt.X:
    scale, axis = log_axis([row[name] for row in rows], title)
    return alt.X(name, type="quantitative", scale=scale, axis=axis)


def _panel(
    rows: list[ChartRow], names: tuple[str, ...], note: str, key: str, along: str, x: alt.X
) -> Panel:
    limit = 1.15 * max(abs(row["residual"]) for row in rows) or 0.1
    chart = [
        no_error(),
        dots(rows).encode(
            x=x,
            y=alt.Y(
                "residual",
                type="quantitative",
                scale=alt.Scale(domain=[-limit, limit], nice=False),
                title=RESIDUAL,
            ),
            tooltip=tips(*(("placement", *_TIPS) if names else _TIPS)),
        ),
    ]
    if names:
        chart[1] = chart[1].encode(color=placement_colour(names), shape=placement_shape(names))
    return Panel(
        f"residuals-by-{key}",
        f"Residuals by {along}",
        f"Scatter of measured minus predicted delta_loss of the fitted runs against {along}.",
        layered(chart, 260),
        note,
    )


def residuals_text(law: LawSummary) -> str:
    """Explain the tests of the residuals in words."""
    found = law.residuals
    tested = [t.along for t in found.trends if t.p_value is not None]
    if found.left:
        text = (
            f"The residuals still follow {_join(found.left)}: the form misses something there, and"
            " predictions further along it will be off."
        )
    elif tested:
        text = f"No structure is left along {_join(tested)}."
    else:
        text = "The points are too few, or the law too open, to test for structure."
    if pairs := entangled_pairs(law.fit):
        named = "; ".join(f"{p.first} and {p.second} ({p.correlation:.3f})" for p in pairs)
        text += (
            f" Known only in combination, with a correlation above 0.95: {named}. Their intervals"
            " must not be read one by one."
        )
    return text


def _join(names: tuple[str, ...] | list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def residual_tables(law: LawSummary) -> tuple[Table, ...]:
    """Return tests for structure, errors by what was left out, and the parameters' correlations."""
    found, several = law.residuals, law.unseen.data.several_placements
    trends = Table(
        "Tests for structure in the residuals",
        ("along", "rank correlation", "share explained", "p"),
        tuple((t.along, t.correlation, t.share, t.p_value) for t in found.trends),
    )
    rows: list[tuple[Cell, ...]] = [
        ("the largest rank and length (extrapolation)", percent(law.extrapolation_mape)),
        (
            f"each cell of {'placement, ' * several}rank, length and steps",
            percent(law.heldout_mape),
        ),
        ("each sequence with its seed", percent(law.sequence_mape)),
        ("nothing: the fitted points themselves", percent(law.mape)),
    ]
    if (spread := found.spread) is not None:
        rows += [
            ("noise between sequences, nats per token", number(spread.between)),
            ("noise within a sequence, nats per token", number(spread.within)),
            ("p of equal sequences", number(spread.p_value)),
        ]
    names = law.fit.law.param_names
    matrix = tuple(
        (name, *(None if x != x else x for x in row))
        for name, row in zip(names, param_correlations(law.fit).tolist(), strict=True)
    )
    return (
        trends,
        Table("Mean error by what was left out of the fit", ("left out", "value"), tuple(rows)),
        Table("Correlations of the parameters", ("parameter", *names), matrix),
    )


def sizes_table(sizes: Sequence[Sizing]) -> Table:
    """Return rank, length and steps that bring the mean loss to ln 2 around each target."""
    rows: list[tuple[Cell, ...]] = []
    names = [size.placement.name if size.placement else size.point.placement for size in sizes]
    named = any(name is not None for name in names)
    for where, size in zip(names, sizes, strict=True):
        for name, found in (
            ("lora_rank needed", size.lora_rank),
            ("longest seq_len", size.seq_len),
            ("train_steps needed", size.train_steps),
        ):
            if found is not None:
                p = size.point
                at = (p.lora_rank, p.seq_len, p.train_steps, size.delta_loss)
                place = (where,) if named else ()
                rows.append((*place, *at, name, found.value, found.low, found.high))
    columns = ("lora_rank", "seq_len", "train_steps", "delta_loss wanted", "what", "value")
    if named:
        columns = ("placement", *columns)
    return Table(
        "What a mean final loss of ln 2 takes around the targets, the other two kept",
        (*columns, "90% low", "90% high"),
        tuple(rows),
    )
