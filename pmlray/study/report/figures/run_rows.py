"""Runs of the law as rows of the figures, with what the law predicts of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pmlray.law import LawSummary, Placement, PlaceWorth, law_data, usable_points
from pmlray.study.findings.fitted_runs import fitted_runs
from pmlray.study.findings.placed_law import worths_of
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.placed import effective_params
from pmlray.study.report.figures.style import ChartRow, drawn_note, observation_row, thinned
from pmlray.types import Observation


def fitted_points(result: SearchResult) -> tuple[Observation, ...]:
    """Return the SFT runs measured for the law, in the order in which they were chosen."""
    return tuple(o for o in result.law_observations if o.method == "sft")


def drawn_steps(result: SearchResult) -> int:
    """Return the optimiser steps that the law's curves are drawn for: the largest measured."""
    return max(o.point.train_steps for o in fitted_points(result))


def runs_note(result: SearchResult) -> str:
    """Return how many of the law's runs figures draw; empty where they draw all."""
    observed = fitted_points(result)
    return drawn_note(len(thinned(observed)), len(observed))


def run_rows(result: SearchResult) -> list[ChartRow]:
    """Return the law's SFT runs as rows, all figures the same ones, so that a page holds them once.

    Where the law has a run's placement, with `predicted`, `residual` (nats per token, measured less
    predicted) and `role`, which says whether the run was fitted; of several placements with
    `effective_params`, those of the reference that the adapter's are worth.
    """
    observed = thinned(fitted_points(result))
    rows = [{**observation_row(o), "pair": f"{o.sequence_id}, {o.seed}"} for o in observed]
    law = result.law
    if law is None:
        return rows
    used = usable_points(law_data(observed), law.fit.law.form, law.fit.options)
    in_law = {o.run_key for o in fitted_runs(result.spec, observed)}
    worths = worths_of(law)
    for name, place in result.fitted_places.items():
        at = [i for i, o in enumerate(observed) if o.point.placement == name]
        runs = [observed[i] for i in at]
        for i, o, predicted in zip(at, runs, _predicted(law, place, runs), strict=True):
            rows[i] |= _judged(o, predicted, bool(used[i]), o.run_key in in_law, place, worths)
    return rows


def residual_rows(result: SearchResult) -> list[ChartRow]:
    """Return the rows of `run_rows` that the law predicts; empty without a law."""
    return [row for row in run_rows(result) if "role" in row]


def is_fitted(row: ChartRow) -> bool:
    """Return whether a row of `residual_rows` took part in the fit."""
    return row["role"] == "fitted"


def _predicted(law: LawSummary, place: Placement | None, runs: list[Observation]) -> list[float]:
    """Return the delta_loss of runs at one placement by the likeliest form, nats per token."""
    own = law.fit.law if place is None else law.fit.law_at(place)
    r, length, t, base = (
        np.array(
            [
                (o.point.lora_rank, o.supervised_tokens, o.point.train_steps, o.base_loss)
                for o in runs
            ],
            dtype=float,
        )
        .reshape(-1, 4)
        .T
    )
    return own.predict(r, length, t, base).tolist()


def _judged(
    o: Observation,
    predicted: float,
    used: bool,
    in_law: bool,
    place: Placement | None,
    worths: Mapping[str, PlaceWorth],
) -> ChartRow:
    role = "fitted" if used else "set aside: final_loss ≤ ln 2"
    row: ChartRow = {
        "predicted": round(predicted, 5),
        "residual": round(o.delta_loss - predicted, 5),
        "role": role if in_law else "left out: optimisation-limited",
    }
    if place is not None:
        row["effective_params"] = effective_params(o, place, worths)
    return row
