"""Sections of a report in their order, each with its text, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pmlray.law import CAPPED
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import (
    capacities,
    capacity_panels,
    capacity_table,
    capacity_text,
)
from pmlray.study.report.figures.errors import error_panels
from pmlray.study.report.figures.law import law_panels
from pmlray.study.report.figures.memft import memft_panels
from pmlray.study.report.figures.run_rows import drawn_steps, fitted_points
from pmlray.study.report.figures.runs import (
    cost_panels,
    heat_panels,
    token_panels,
)
from pmlray.study.report.figures.search import learning_panels, order_panels
from pmlray.study.report.figures.surface import surface_panels
from pmlray.study.report.page import Section
from pmlray.study.report.placements import placements_section
from pmlray.study.report.recall import recall_panels, recall_tables, recall_text
from pmlray.study.report.residuals import (
    residual_panels,
    residual_tables,
    residuals_text,
    sizes_table,
)
from pmlray.study.report.settings import settings_list
from pmlray.study.report.stubborn import (
    stubborn_panels,
    stubborn_table,
    stubborn_text,
    stubborn_tokens,
)
from pmlray.study.report.tables import (
    failures_table,
    fit_table,
    law_table,
    observations_table,
    pairs_table,
    targets_table,
)


def report_sections(result: SearchResult, facts: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return all sections in the order of the page, empty ones too; `facts` as in
    `write_report`."""
    parts = {
        "The law": (_law_section(result), *_law_numbers(result)),
        "Recall": _recall_sections(result),
        "Diagnostics": _diagnostic_sections(result),
        "Reference": _reference_sections(result, facts),
    }
    return tuple(replace(section, part=part) for part in parts for section in parts[part])


def _law_section(result: SearchResult) -> Section:
    panels = (*law_panels(result), *surface_panels(result))
    return Section("law", "The law", _law_text(result), panels)


def _law_numbers(result: SearchResult) -> tuple[Section, ...]:
    placements = (placements_section(result),) if result.placements else ()
    if result.law is None:
        return placements
    tables = (
        *(law_table(result.law), targets_table(result.law)),
        *(sizes_table(result.sizes), fit_table(result.law)),
    )
    numbers = Section(
        "numbers",
        "The law in numbers",
        "Intervals are central 90% intervals of samples of what is believed after the points.",
        tables=tables,
    )
    return (*placements, numbers)


def _recall_sections(result: SearchResult) -> tuple[Section, ...]:
    placed = "placement, " if result.placements else ""
    found = capacities(result)
    return (
        Section(
            "recall",
            "What was recalled",
            f"Plain SFT at each {placed}rank and length, replicates averaged; lighter is better. An"
            " empty place was not measured. A cell shows the runs with the most optimiser steps.",
            heat_panels(result),
        ),
        Section(
            "recall-law",
            "Recall by loss",
            recall_text(result.recall_result, recall_rule(result.observations), result.placements),
            recall_panels(result),
            recall_tables(result),
        ),
        Section(
            "memft",
            "MemFT against SFT",
            "Each pair differs in the method alone: the same point, text, seed and number of steps,"
            " joined by a line. Pairs are numbered as in the table; r is lora_rank, l seq_len, t"
            " train_steps. Bars are 95% intervals over texts (Student's); a point of a single text,"
            " or whose texts all differ alike, has none.",
            memft_panels(result.pairs),
            (pairs_table(result.pairs, result.placements),),
        ),
        Section(
            "capacity",
            "Bits held",
            capacity_text(found),
            capacity_panels(found, result.placements),
            (capacity_table(found, result.placements),),
        ),
    )


def _diagnostic_sections(result: SearchResult) -> tuple[Section, ...]:
    tallies = stubborn_tokens(result)
    return (
        Section("errors", "Where the law is off", _errors_text(result), error_panels(result)),
        *_residual_sections(result),
        Section(
            "tokens",
            "Probability of each token",
            "SFT runs after training: the best, those whose final loss is nearest to ln 2, the"
            " worst. A token above the dashed line at 0.5 is sure to be decoded.",
            token_panels(result),
        ),
        Section(
            "stubborn",
            "Stubborn tokens",
            stubborn_text(tallies),
            stubborn_panels(tallies),
            (stubborn_table(tallies),),
        ),
        Section(
            "search",
            "How the search went",
            "Runs stand in the order in which they were chosen, coloured by round. Bars"
            " are 90% intervals of the law as it was known after each round; those of the first"
            " may leave the chart.",
            (*order_panels(result), *learning_panels(result)),
        ),
        Section(
            "cost",
            "What it cost",
            "gpu_seconds are device-seconds inside training loops, shared out over a pack by"
            " tokens; on a CPU they are the CPU seconds of the training process.",
            cost_panels(result),
        ),
    )


def _residual_sections(result: SearchResult) -> tuple[Section, ...]:
    if result.law is None:
        return ()
    return (
        Section(
            "residual-structure",
            "What the fit leaves over",
            residuals_text(result.law),
            residual_panels(result),
            residual_tables(result.law),
        ),
    )


def _reference_sections(result: SearchResult, facts: Mapping[str, Any]) -> tuple[Section, ...]:
    return (
        Section(
            "observations",
            "All runs",
            "Losses are nats per supervised token; token, prefix and exact are recall. The"
            " certificate says what more steps would change: expected_fall is how much further the"
            " loss would fall with twice as many." + ("" if result.failures else " No run failed."),
            tables=(observations_table(result), failures_table(result)),
        ),
        Section(
            "reproduce",
            "To reproduce this",
            "The same settings make the same search, and the same search_id.",
            items=settings_list(result, facts),
        ),
        Section(
            "checklist",
            "To check the fit",
            "What a reader needs to fit the same law to the same runs (after arXiv 2502.18969).",
            items=tuple(result.law.checklist.items()) if result.law else (),
        ),
    )


def _law_text(result: SearchResult) -> str:
    if result.law is None:
        return "Points are measurements; too few for a law."
    text = (
        "Points are measurements; curves are the fitted law at"
        f" {drawn_steps(result):,} optimiser steps, and bands the 90% interval of the law itself,"
        " which single measurements scatter around."
    )
    if result.placements:
        text += (
            " Each placement of the adapter has its own figures, on one scale of delta_loss; they"
            " are one law, of effective parameters."
        )
    if len({o.point.train_steps for o in fitted_points(result)}) > 1:
        text += " Faint points had fewer steps."
    if result.law.fit.law.form in CAPPED:
        text += (
            " The dashed line is the largest base loss of the runs; that of each text bounds its"
            " own reduction, and that of each length its curve."
        )
    return text


def _errors_text(result: SearchResult) -> str:
    text = (
        "On the diagonal the law predicts what was measured. Residuals without a pattern along"
        f" length or {'size' if result.placements else 'rank'} speak for the form of the law."
    )
    if result.law is not None and (n := result.law.fit.n_censored):
        text += (
            f" {n} points were set aside, since the power form has no ceiling; those that it"
            " predicts far too high lie outside the charts."
        )
    return text
