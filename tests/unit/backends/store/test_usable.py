"""Folders that are no place for a store, and stores that must not be touched: told at the start."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pmlray.api.environment.checks import storage
from pmlray.backends.store.file_store import FileStore
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.engine.runtime.checkpoint_header import CHECKPOINT_VERSION, version_of
from pmlray.engine.runtime.checkpoints import Checkpoints, file_name
from pmlray.errors import SpecError, StoreError, StoreRefused
from pmlray.types import OBSERVATION_SCHEMA
from tests.fuzz_targets import OBSERVATION


def test_a_file_system_without_hard_links_is_told_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str, **_: object) -> None:
        # What FAT and most of FUSE answer.
        raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    store = FileStore(tmp_path)
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="has no hard links"), store.driver_lock():
        raise AssertionError("began")
    assert "has no hard links" in storage("store", tmp_path, links=True).detail
    assert storage("cache", tmp_path).state != "fail"
    assert not list((tmp_path / "leases").iterdir())


# In a mount namespace of its own, where root of a container may not be root enough to mount.
READ_ONLY = """
import sys
from pathlib import Path
from pmlray.backends.store.file_store import FileStore
from pmlray.errors import StoreError
try:
    with FileStore(Path(sys.argv[1])).driver_lock():
        pass
except StoreError as error:
    print(error)
"""


def test_a_read_only_store_is_told(tmp_path: Path) -> None:
    FileStore(tmp_path)
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    command = [sys.executable, "-c", READ_ONLY, str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert "cannot be written (Read-only file system)" in done.stdout, done.stderr


def test_links_in_a_store_are_not_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = FileStore(tmp_path / "store")
    (store.folder / "report").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="report is a symbolic link"), store.driver_lock():
        raise AssertionError("began")
    (store.folder / "report").unlink()
    with store.driver_lock():
        pass


def test_a_store_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "there")
    with FileStore(tmp_path / "store").driver_lock():
        pass


def test_a_url_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="s3://bucket/x is no folder"):
        FileStore(Path("s3://bucket/x"))
    assert not list(tmp_path.iterdir())


def newer(folder: Path) -> Path:
    """A whole checkpoint as a later version would leave it."""
    metadata = {"identity": "other", "step": "7", "facts": "{}",
                "version": str(CHECKPOINT_VERSION + 1)}  # fmt: skip
    content = save({"x": torch.zeros(2)}, metadata)
    folder.mkdir(parents=True)
    path = folder / file_name(7, content)
    path.write_bytes(content)
    return path


def test_a_checkpoint_of_a_newer_version_stays(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    path = newer(store.checkpoints("pack"))
    before = path.read_bytes()
    assert version_of(path) == CHECKPOINT_VERSION + 1
    with pytest.raises(StoreRefused, match="newer version of pmlray"), store.driver_lock():
        raise AssertionError("began")
    with pytest.raises(StoreRefused, match="newer version of pmlray"):
        Checkpoints(path.parent, (), 60.0, lambda: False).resume(None)  # type: ignore[arg-type]
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + bytes(7) + b"{}", bytes(8)])
def test_a_damaged_checkpoint_tells_no_version(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert version_of(tmp_path / "x.safetensors") == 0
    assert version_of(tmp_path / "gone") == 0


def test_observations_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    stored: dict[str, Any] = {**OBSERVATION.to_json(), "schema": OBSERVATION_SCHEMA + 1}
    path = tmp_path / "observations" / f"{stored['run_key']}.json"
    text = json.dumps(stored)
    path.write_text(text)
    with pytest.raises(StoreError, match=f"schema {OBSERVATION_SCHEMA + 1}.*version that wrote it"):
        store.observations()
    assert not (tmp_path / SEARCH_FILE).exists() and path.read_text() == text
