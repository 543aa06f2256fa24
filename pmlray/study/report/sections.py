"""Sections of a report in their order, each with its text, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmlray.law import CAPPED
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import (
    RunCapacity,
    capacities,
    capacity_panels,
    capacity_table,
    capacity_text,
)
from pmlray.study.report.figures.errors import error_panels
from pmlray.study.report.figures.law import drawn_steps, fitted_points, law_panels
from pmlray.study.report.figures.memft import memft_panels
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

NO_LAW = "No law is fitted yet: too few points are measured."


def report_sections(result: SearchResult, facts: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return all sections in the order of the page; `facts` as in `write_report`."""
    placed = "placement, " if result.placements else ""
    return (
        Section(
            "law", "The law", _law_text(result), (*law_panels(result), *surface_panels(result))
        ),
        Section(
            "errors",
            "Where the law is off",
            _errors_text(result),
            error_panels(result),
        ),
        _residuals_section(result),
        Section(
            "recall",
            "What was recalled",
            f"Plain SFT at each {placed}rank and length, replicates averaged; lighter is better. An"
            " empty place was not measured. A cell shows the runs with the most optimiser steps."
            if result.observations
            else "Nothing is measured yet.",
            heat_panels(result),
        ),
        Section(
            "tokens",
            "Probability of each token",
            "SFT runs after training: the best, those whose final loss is nearest to ln 2, the"
            " worst. A token above the dashed line at 0.5 is sure to be decoded."
            if any(o.token_p for o in result.observations)
            else "No run kept the probability of its tokens.",
            token_panels(result),
        ),
        _stubborn_section(result),
        Section(
            "recall-law",
            "Recall by loss",
            recall_text(result.recall_result, recall_rule(result.observations), result.placements),
            recall_panels(result),
            tuple(table for table in recall_tables(result) if table.rows),
        ),
        *(() if not result.placements else (placements_section(result),)),
        _capacity_section(capacities(result), result.placements),
        Section(
            "search",
            "How the search went",
            "Runs stand in the order in which they were chosen, coloured by round. Bars"
            " are 90% intervals of the law as it was known after each round; those of the first"
            " may leave the chart."
            if result.law_observations
            else "Nothing is measured for the law yet.",
            (*order_panels(result), *learning_panels(result)),
        ),
        Section(
            "cost",
            "What it cost",
            "gpu_seconds are device-seconds inside training loops, shared out over a pack by"
            " tokens; on a CPU they are the CPU seconds of the training process.",
            cost_panels(result),
        ),
        _memft_section(result),
        Section(
            "observations",
            "All runs",
            "Losses are nats per supervised token; token, prefix and exact are recall. The"
            " certificate says what more steps would change: expected_fall is how much further the"
            " loss would fall with twice as many." + ("" if result.failures else " No run failed."),
            tables=tuple(
                table
                for table in (observations_table(result), failures_table(result))
                if table.rows
            ),
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
            "What a reader needs to fit the same law to the same runs (after arXiv 2502.18969)."
            if result.law
            else NO_LAW,
            items=tuple(result.law.checklist.items()) if result.law else (),
        ),
        _numbers_section(result),
    )


def _law_text(result: SearchResult) -> str:
    if not fitted_points(result):
        return "Nothing is measured for the law yet."
    if result.law is None:
        return "Points are measurements. " + NO_LAW
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
        text += " The dashed line is the typical base loss; each length's own bounds its curve."
    return text


def _errors_text(result: SearchResult) -> str:
    if result.law is None:
        return NO_LAW
    text = (
        "On the diagonal the law predicts what was measured. Residuals without a pattern along"
        f" length or {'size' if result.placements else 'rank'} speak for the form of the law."
    )
    if n := result.law.fit.n_censored:
        text += (
            f" {n} points were set aside, since the power form has no ceiling; those that it"
            " predicts far too high lie outside the charts."
        )
    return text


def _residuals_section(result: SearchResult) -> Section:
    title = "What the fit leaves over"
    if result.law is None:
        return Section("residual-structure", title, NO_LAW)
    return Section(
        "residual-structure",
        title,
        residuals_text(result.law),
        residual_panels(result),
        tuple(table for table in residual_tables(result.law) if table.rows),
    )


def _stubborn_section(result: SearchResult) -> Section:
    found = stubborn_tokens(result)
    table = stubborn_table(found)
    return Section(
        "stubborn",
        "Stubborn tokens",
        stubborn_text(found),
        stubborn_panels(found),
        (table,) if table.rows else (),
    )


def _capacity_section(found: tuple[RunCapacity, ...], names: tuple[str, ...]) -> Section:
    tables = (capacity_table(found, names),) if found else ()
    panels = capacity_panels(found, names)
    return Section("capacity", "Bits held", capacity_text(found), panels, tables)


def _memft_section(result: SearchResult) -> Section:
    title = "MemFT against SFT"
    if result.pairs:
        text = (
            "Each pair differs in the method alone: the same point, text, seed and number of"
            " steps. Pairs are numbered as in the table; r is lora_rank, l seq_len, t train_steps."
            " Bars are 95% intervals over texts (Student's); a point of a single text has none."
        )
        tables = (pairs_table(result.pairs, result.placements),)
        return Section("memft", title, text, memft_panels(result.pairs), tables)
    if result.spec.memft is None:
        return Section("memft", title, "This search asked for no MemFT runs.")
    asked = " and ".join(result.spec.memft.methods)
    return Section("memft", title, f"This search asks for {asked}, but no pair has been run.")


def _numbers_section(result: SearchResult) -> Section:
    title = "The law in numbers"
    if result.law is None:
        return Section("numbers", title, NO_LAW)
    return Section(
        "numbers",
        title,
        "Intervals are central 90% intervals of samples of what is believed after the points.",
        tables=tuple(
            table
            for table in (
                *(law_table(result.law), targets_table(result.law)),
                *(sizes_table(result.law), fit_table(result.law)),
            )
            if table.rows
        ),
    )
