"""The pages' drawing code: bundled once, and a page needs no cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmlray.study.report import vega_bundle


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often it was bundled."""
    calls: list[str] = []

    def bundle(snippet: str, vl_version: str) -> str:
        calls.append(vl_version)
        return "window.code = '</script>';\r\n"

    monkeypatch.setattr(vega_bundle.vl_convert, "javascript_bundle", bundle)
    return calls


def test_what_was_bundled_once_is_read_from_then_on(
    bundled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "new"))
    first, second = (vega_bundle.vega_bundle.__wrapped__() for _ in range(2))
    assert first == second == "window.code = '<\\/script>';\r\n"
    assert len(bundled) == 1


def test_a_page_needs_no_cache(
    bundled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "file"))
    assert "window.code" in vega_bundle.vega_bundle.__wrapped__()
    assert len(bundled) == 1
