"""What `pmlray submit` sends, as Ray's own unpacking sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmlray.backends.ray import job_upload
from pmlray.backends.ray.job_upload import pack_working_dir
from pmlray.errors import SpecError


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
