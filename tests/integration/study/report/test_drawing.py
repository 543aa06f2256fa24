"""What draws a page: bundled once, with no need of a cache, and told where it is missing."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import vl_convert

from pmlray.errors import INSTALL_DRAW
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.drawing import vega_bundle
from pmlray.study.report.page import write_pngs
from pmlray.study.report.search_report import write_report
from tests.unit.study.conftest import Page


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often it was bundled."""
    calls: list[str] = []

    def bundle(snippet: str, vl_version: str) -> str:
        calls.append(vl_version)
        return "window.code = '</script>';\r\n"

    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    return calls


def test_what_was_bundled_once_is_read_from_then_on(
    bundled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "new"))
    first, second = (vega_bundle.__wrapped__() for _ in range(2))
    assert first == second == "window.code = '<\\/script>';\r\n"
    assert len(bundled) == 1


def test_a_page_needs_no_cache(
    bundled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "file"))
    assert "window.code" in vega_bundle.__wrapped__()
    assert len(bundled) == 1


def test_a_report_without_what_draws_has_its_tables_and_says_what_to_install(
    result: SearchResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As where it is not installed: every import of it fails.
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with caplog.at_level(logging.WARNING):
        file = write_report(result, tmp_path / "report", {})
    write_pngs(sorted((file.parent / "figures").glob("*.svg")))
    assert INSTALL_DRAW in caplog.text
    page = Page(file.read_text("utf-8"))
    assert INSTALL_DRAW in page.text and "CONVERGED" in page.text
    assert not page.figures() and not page.scripts
    assert [tag for tag, _ in page.elements].count("table") > 5
    assert sorted(path.name for path in file.parent.iterdir()) == ["report.html", "report.json"]
