"""What an audit's report means."""

from __future__ import annotations

import pytest

from scripts import audit

# As pip-audit 2.10 prints it.
REPORT = {
    "dependencies": [
        {"name": "fine", "version": "1.0", "vulns": []},
        {"name": "bad", "version": "2.0", "vulns": [
            {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.1"]},
            {"id": "PYSEC-2026-2", "aliases": [], "fix_versions": []}]},
        {"name": "unknown", "skip_reason": "Dependency not found on PyPI"},
    ],
    "fixes": [],
}  # fmt: skip


def test_what_nobody_has_explained_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit.findings(REPORT) == [("bad 2.0", "PYSEC-2026-1"), ("bad 2.0", "PYSEC-2026-2")]
    assert audit.skipped(REPORT) == ["unknown"]
    monkeypatch.setattr(audit, "EXPLAINED", {"CVE-2026-1": "not used"})
    assert audit.findings(REPORT) == [("bad 2.0", "PYSEC-2026-2")]
