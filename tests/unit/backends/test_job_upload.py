"""What `pmlray submit` sends, as Ray's own unpacking sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import unzip_package

from pmlray.backends import job_upload
from pmlray.backends.job_upload import pack_working_dir
from pmlray.errors import SpecError


def test_it_is_small_and_runs_where_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "part.arrow").write_bytes(b"\0\1")
    files = {"search.yaml": tmp_path / "mine.yaml", "files/records": tmp_path / "facts"}
    archive = tmp_path / "upload.zip"
    assert pack_working_dir(archive, files) == archive.stat().st_size < 1_000_000
    there = tmp_path / "there"
    unzip_package(str(archive), str(there), remove_top_level_directory=False,
                  unlink_zip=False)  # fmt: skip
    assert (there / "search.yaml").read_text() == "name: mine\n"
    assert (there / "files" / "records" / "part.arrow").read_bytes() == b"\0\1"
    assert not list(there.rglob("__pycache__"))
    command = [sys.executable, "-c", "import pmlray.cli; print(pmlray.__file__)"]
    ran = subprocess.run(command, cwd=there, capture_output=True, text=True, timeout=60, check=True)
    assert Path(ran.stdout.strip()) == there / "pmlray" / "__init__.py"


def test_the_same_content_is_the_same_archive(tmp_path: Path) -> None:
    search = tmp_path / "search.yaml"
    search.write_text("name: mine\n")
    archives = [tmp_path / name for name in ("one.zip", "two.zip")]
    for archive in archives:
        search.touch()
        pack_working_dir(archive, {"search.yaml": search})
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_what_ray_would_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_upload, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(SpecError, match="ray job submit"):
        pack_working_dir(tmp_path / "upload.zip", {})
