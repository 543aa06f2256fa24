"""The report of searches that have little to show, or names that mean harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmlray.study.findings.result import SearchResult
from pmlray.study.report.search_report import write_report
from tests.integration.study.report.test_search_report import ALL_FIGURES, FACTS, LAW_FIGURES
from tests.unit.study.conftest import MakeResult, Page

pytestmark = pytest.mark.usefixtures("short_pages")


def test_text_cannot_become_markup(make_result: MakeResult, tmp_path: Path) -> None:
    result = make_result(n_rounds=0, memft=False)
    evil = "</script><script>alert(1)</script>"
    object.__setattr__(result, "spec", result.spec.model_copy(update={"name": evil}))
    page = Page(write_report(result, tmp_path, FACTS | {"store": evil}).read_text("utf-8"))
    plain = [a for tag, a in page.elements if tag == "script"]
    assert len(plain) == 5 and not any("alert(1)" in s for s in page.scripts.values())
    assert page.text.count(evil) >= 3
    assert "loss <b>NaN</b>; lower the rate" in page.text
    assert not {"b", "i"} & {tag for tag, a in page.elements if tag == "td"}
    assert "a <i>machine</i>" in page.text


def test_without_a_law_shows_what_there_is(make_result: MakeResult, tmp_path: Path) -> None:
    result = make_result(n_rounds=1, memft=False)
    unfitted = SearchResult(
        result.spec, result.observations, result.failures, (), result.pairs, result.packs
    )
    page = Page(write_report(unfitted, tmp_path, {}).read_text("utf-8"))
    memft = {"memft-exact", "memft-prefix", "memft-token", "memft-difference"}
    assert page.figures() == set(page.specs()) == ALL_FIGURES - LAW_FIGURES - memft
    assert "There is no law yet: 6 runs are measured" in page.text
    assert json.loads((tmp_path / "report.json").read_text())["law"] is None


def test_without_any_run_still_renders(make_result: MakeResult, tmp_path: Path) -> None:
    empty = SearchResult(make_result(n_rounds=0, memft=False).spec, (), (), (), (), ())
    page = Page(write_report(empty, tmp_path, {}).read_text("utf-8"))
    assert page.figures() == set() and "No answer yet: nothing is measured." in page.text
    # What has nothing to show has no heading.
    assert [a["id"] for tag, a in page.elements if tag == "section"] == ["answer", "reproduce"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [(None, "asked for no MemFT runs"), ({"n_points": 1}, "but no pair has been run")],
)
def test_says_why_there_is_no_memft(
    make_result: MakeResult, tmp_path: Path, asked: dict[str, int] | None, says: str
) -> None:
    result = make_result(n_rounds=0, memft=False, memft_spec=asked)
    page = Page(write_report(result, tmp_path, {}).read_text("utf-8"))
    assert says in page.text
    assert not any(key.startswith("memft") for key in page.figures())
