"""Report of a comparison as files: a page, a table, a figure and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from pmlray.config.secrets import without_credentials
from pmlray.study.comparison.equal_recall import EqualRecall
from pmlray.study.comparison.recall_levels import SecondsToRecall
from pmlray.study.comparison.results import FIGURES, MethodComparison, MethodResult
from pmlray.study.findings.differences import Difference
from pmlray.study.report.comparison_answer import comparison_costs, comparison_parts
from pmlray.study.report.drawing import png_of
from pmlray.study.report.figures.memft import (
    RECALLS,
    SHORT_METHOD,
    difference_panel,
    point_label,
)
from pmlray.study.report.figures.rates import rate_panels
from pmlray.study.report.page import Section, page_files, write_files
from pmlray.study.report.settings import fact_items
from pmlray.study.report.tables import Table


# Charts are held against Vega-Lite's schema in tests.
@debug_mode(False)
def write_comparison(
    comparison: MethodComparison, folder: Path, facts: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Write comparison.html, .csv, .json and, with any difference, .svg and .png into a folder.

    Returns their paths, the page's first. facts: machine, versions and the like, shown as they are;
    credentials in addresses are left out. StoreError when the folder cannot be written.
    """
    facts = without_credentials(facts)
    page, table, stored, picture = (
        folder / f"comparison.{kind}" for kind in ("html", "csv", "json", "svg")
    )
    rows = [_csv_row(result) for result in comparison.results]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    full = {**comparison.to_json(), "facts": facts}
    panel = difference_panel(
        "comparison", [(r.point, r.method, r.differences) for r in comparison.results]
    )
    files = page_files(
        page,
        "page.html.j2",
        () if panel is None else (panel,),
        comparison_sections(comparison, facts),
        folder,
        title="Training methods compared",
        kind="comparison",
        identity=comparison.compare_id,
        about=comparison.about,
        parts=comparison_parts(comparison),
        beside=comparison_costs(comparison),
        command="",
    )
    files[table] = lines.getvalue().encode()
    files[stored] = (json.dumps(full, indent=1, default=str) + "\n").encode()
    if (drawn := files.get(picture)) is not None:
        files[picture.with_suffix(".png")] = png_of(drawn)
    write_files(files)
    pictures = (picture, picture.with_suffix(".png")) if drawn else ()
    return (page, table, stored, *pictures)


def comparison_sections(
    comparison: MethodComparison, facts: Mapping[str, Any]
) -> tuple[Section, ...]:
    """Return the sections of the page in their order."""
    columns = ("point", "method", "rate", "runs", *_figures(comparison.results), "holm_p")
    shown = [shown_row(result) for result in comparison.results]
    cells = tuple(tuple(row[column] for column in columns) for row in shown)
    sections = [
        Section(
            "differences",
            "What each method changes",
            "Means over all runs of a method at a point, and in brackets the paired difference from"
            " plain fine-tuning (SFT) with its 95% interval over texts (Student's, after averaging"
            " over seeds). r is lora_rank, l seq_len, t train_steps; a point with its own schedule"
            " says which. holm_p is the probability of a difference in exact recall as large by"
            " chance, corrected by Holm for all of them.",
            tables=(Table("Every method at every point", columns, cells, "comparison.csv"),),
        )
    ]
    if comparison.tried:
        sections.append(_rates_section(comparison))
    if comparison.equal_recall:
        named = ("method", "figure", "SFT at", "its recall", "cost", "SFT's", "needed", "ratio")
        rows = tuple(_equal_row(found) for found in comparison.equal_recall)
        sections.append(
            Section(
                "equal-recall",
                "Cost at equal recall",
                "What a method needs to recall as much as SFT does at a point: which adapter rank"
                " at equal steps, how many gpu_seconds at equal rank. Below 1 it needs less."
                " Intervals hold 95% of comparisons over texts drawn anew.",
                tables=(Table("Cost to recall as much as SFT", named, rows, "comparison.json"),),
            )
        )
    if comparison.to_recall:
        sections.append(_levels_section(comparison.to_recall))
    said = "Facts of the run that wrote this page."
    return (*sections, Section("measured", "How it was measured", said, items=fact_items(facts)))


def _rates_section(comparison: MethodComparison) -> Section:
    """Return the section on how the rates were chosen, with each best rate that lies at an end."""
    ends: dict[str, list[str]] = {}
    for r in comparison.results:
        if r.edge is not None:
            end = f"{point_label(r.point)} ({r.learning_rate:g}, the {r.edge} whose runs ended)"
            ends.setdefault(end, []).append(SHORT_METHOD[r.method])
    said = "Each method is compared at the rate with its best mean here, on texts of their own."
    if ends:
        told = "; ".join(f"{', '.join(methods)} at {end}" for end, methods in ends.items())
        said += f" A rate beyond those tried may be better still for {told}."
    columns = ("point", "method", "rate", "runs", "exact_recall", "least", "largest")
    rows = tuple(
        (
            point_label(t.point),
            SHORT_METHOD[t.method],
            f"{t.learning_rate:g}",
            str(t.n_runs),
            *(f"{share:.3f}" for share in (t.exact_recall, t.low, t.high)),
        )
        for t in comparison.tried
    )
    table = Table("Every rate that was tried", columns, rows)
    return Section("rates", "Which rate suits which", said, rate_panels(comparison.tried), (table,))


def _levels_section(found: Sequence[SecondsToRecall]) -> Section:
    """Return the section on the gpu_seconds of a run to each level of exact recall."""

    def shown(s: SecondsToRecall) -> str:
        if s.gpu_seconds is None:
            return "less than any run" if s.above else "more than any run"
        if s.low is None or s.high is None:
            return f"{s.gpu_seconds:.2f}"
        return f"{s.gpu_seconds:.2f} [{s.low:.2f}, {s.high:.2f}]"

    columns = ("method", "lora_rank", "seq_len", "schedule", "exact_recall", "gpu_seconds")
    rows = tuple(
        (
            SHORT_METHOD[s.method],
            str(s.lora_rank),
            str(s.seq_len),
            s.schedule or "the recipe's",
            f"{s.recall:g}",
            shown(s),
        )
        for s in found
    )
    return Section(
        "levels",
        "Cost to a level of recall",
        "gpu_seconds of a run at which mean exact recall reaches a level, between the budgets that"
        " were run. Intervals hold 95% of comparisons over texts drawn anew.",
        tables=(Table("Cost to a level of exact recall", columns, rows),),
    )


def describe_comparison(comparison: MethodComparison) -> str:
    """Describe the comparison in plain text, one line per method and point."""
    lines = [f"{comparison.compare_id}: mean, and difference from SFT [95 % interval over texts]"]
    for row in map(shown_row, comparison.results):
        lines.append("  " + "  ".join(f"{key} {value}" for key, value in row.items() if value))
    if reached := [found for found in comparison.equal_recall if found.ratio is not None]:
        lines.append("cost to recall as much as SFT at a point, and its ratio to SFT's cost:")
        lines += ["  " + "  ".join(_equal_row(found)) for found in reached]
    return "\n".join(lines)


def shown_row(result: MethodResult) -> dict[str, str]:
    """Return a method at a point as a row: means, and differences from SFT with intervals."""
    means = result.means
    row = {
        "point": point_label(result.point),
        "method": SHORT_METHOD[result.method],
        "rate": f"{result.learning_rate:g}" + ("" if result.edge is None else f" ({result.edge})"),
        "runs": str(result.n_runs),
    }
    for name in _figures([result]):
        shown = "" if name not in means else f"{means[name]:.3f}"
        row[name] = f"{shown} {_interval(result.differences.get(name))}".strip()
    row["holm_p"] = "" if result.holm_p is None else f"{result.holm_p:.2g}"
    return row


def _figures(results: Sequence[MethodResult]) -> tuple[str, ...]:
    """Return the figures to show, with the share of right answers where runs have ends."""
    with_ends = any("answer_recall" in result.means for result in results)
    exact, *others = RECALLS
    answers = ("answer_recall",) if with_ends else ()
    return (exact, *answers, *others, "prose_delta_loss", "gpu_seconds")


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"({difference.mean:+.3f})"
    return f"({difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"


def _equal_row(found: EqualRecall) -> tuple[str, ...]:
    def shown(x: float | None) -> str:
        return "outside" if x is None else f"{x:.2f}"

    ratio = "" if found.ratio is None else shown(found.ratio)
    bounds = f"[{shown(found.low)}, {shown(found.high)}]"
    return (
        SHORT_METHOD[found.method],
        found.figure,
        point_label(found.sft_point),
        f"{found.recall:.3f}",
        found.cost,
        f"{found.sft_cost:.2f}",
        shown(found.needed),
        f"{ratio} {bounds}".strip(),
    )


def _csv_row(result: MethodResult) -> dict[str, Any]:
    p = result.point
    row: dict[str, Any] = {
        "lora_rank": p.lora_rank,
        "seq_len": p.seq_len,
        "train_steps": p.train_steps,
        "schedule": p.schedule,
        "method": result.method,
        "learning_rate": result.learning_rate,
        "edge": result.edge,
        "n_runs": result.n_runs,
    }
    for name in FIGURES:
        found = result.differences.get(name)
        row[name] = result.means.get(name)
        row[f"{name}_difference"] = None if found is None else found.mean
        row[f"{name}_low"] = None if found is None else found.low
        row[f"{name}_high"] = None if found is None else found.high
    row["exact_recall_holm_p"] = result.holm_p
    return row
