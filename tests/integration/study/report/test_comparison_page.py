"""The page of a comparison: which method recalls more, how sure, and what that costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmlray.study.comparison.results import MethodComparison, MethodResult
from pmlray.study.findings.differences import Difference
from pmlray.study.report.comparison_answer import comparison_costs, comparison_parts
from pmlray.study.report.comparison_report import write_comparison
from pmlray.types import DesignPoint, Method
from tests.unit.study.conftest import Page

pytestmark = pytest.mark.usefixtures("short_pages")
POINT = DesignPoint(2, 280, 400)


def result(
    method: Method,
    recall: float,
    low: float | None = None,
    high: float | None = None,
    holm_p: float | None = None,
) -> MethodResult:
    changed = {}
    if method != "sft":
        mean = recall - 0.77
        changed = {"exact_recall": Difference(mean, low, high, 1 if low is None else 10)}
    means = {"exact_recall": recall, "gpu_seconds": 30.0}
    return MethodResult(POINT, method, 4e-2, 20, means, changed, holm_p=holm_p)


def compared(*results: MethodResult) -> MethodComparison:
    about = ("smollm2-135m", "phone books", "adapter at mlp of layer 20", "400 runs of 2026-11-30")
    return MethodComparison("phonebook-0", results, (), about)


def test_a_method_is_said_to_recall_more_or_less_only_where_that_is_clear_among_all() -> None:
    found = compared(
        result("sft", 0.77),
        result("memft_ot", 0.82, 0.03, 0.07, 0.03),
        result("memft_sw", 0.88, 0.05, 0.17, 0.01),
        # Its own interval is clear of 0, but it is one of four.
        result("memft_fw", 0.75, -0.08, -0.01, 0.06),
        result("memft_rd", 0.6, -0.2, -0.14, 1e-4),
    )
    said = dict(comparison_parts(found))
    assert said["Recall"].endswith(
        "MemFT-OT at 1 point more; MemFT-SW at 1 point more; MemFT-FW at none clearly more;"
        " MemFT-RD at 1 point less."
    )
    assert said["By point"] == (
        "At rank 2, 280 tokens and 400 steps, SFT recalls 77% whole; MemFT-SW recalls most, 88%"
        " (+11 points, +5 to +17, over 10 texts); MemFT-OT recalls more too; MemFT-RD recalls"
        " less; whether MemFT-FW recalls more or less is open."
    )
    costs = dict(comparison_costs(found))
    assert "SFT 30, MemFT-OT 30" in costs["Cost"] and "More texts settle" in costs["Next"]


def test_a_single_text_leaves_every_method_open() -> None:
    said = dict(comparison_parts(compared(result("sft", 0.77), result("memft_ot", 0.97))))
    assert "whether MemFT-OT recalls more or less is open" in said["By point"]
    assert "MemFT-OT at none clearly more" in said["Recall"]


def test_a_page_without_a_comparison_says_so(tmp_path: Path) -> None:
    page = write_comparison(compared(result("sft", 0.77)), tmp_path, {})[0].read_text("utf-8")
    read = Page(page)
    assert "No answer yet: no method has been run beside plain fine-tuning" in read.text
    assert read.figures() == set()
    assert [a["id"] for tag, a in read.elements if tag == "section"] == ["answer", "differences"]


def test_the_page_says_what_it_is_of_and_begins_with_its_figure(tmp_path: Path) -> None:
    found = compared(result("sft", 0.77), result("memft_ot", 0.82, 0.01, 0.09, 0.03))
    page = write_comparison(found, tmp_path, {"machine": "m"})[0].read_text("utf-8")
    title = page.partition("<title>")[2].partition("</title>")[0]
    assert title == (
        "Training methods compared: comparison, smollm2-135m, phone books, adapter at mlp of layer"
        " 20, 400 runs of 2026-11-30"
    )
    read = Page(page)
    assert read.figures() == {"comparison"}
    assert read.text.index("MemFT-OT at 1 point more") < read.text.index("Every method at every")
