"""Files that come with pmlray, looked up by the names that texts give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmlray import version
from pmlray.version import here_or_shipped, shipped

ROOT = Path(__file__).parents[2]
SMOKE = "searches/smoke.yaml"


def test_in_a_clone_they_lie_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert shipped(SMOKE) == here_or_shipped(Path(SMOKE)) == Path(SMOKE)
    monkeypatch.chdir(tmp_path)
    assert shipped(SMOKE) == here_or_shipped(Path(SMOKE)) == ROOT / SMOKE
    (tmp_path / "searches").mkdir()
    (tmp_path / SMOKE).touch()
    assert here_or_shipped(Path(SMOKE)) == Path(SMOKE)


def test_a_wheel_has_them_where_pip_puts_shared_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "SOURCE", tmp_path / "lib" / "pmlray")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path) if name == "data" else "")
    assert shipped(SMOKE) == Path(SMOKE)
    file = tmp_path / "share" / "pmlray" / SMOKE
    file.parent.mkdir(parents=True)
    file.touch()
    assert shipped(SMOKE) == file


@pytest.mark.parametrize("name", ["mine.yaml", "pmlray/version.py", "searches/../README.md", ""])
def test_no_other_name_leads_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here_or_shipped(Path(name)) == Path(name)


def test_a_working_folder_that_was_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert shipped(SMOKE) == ROOT / SMOKE
    monkeypatch.chdir(tmp_path)
