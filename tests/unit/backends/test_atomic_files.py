"""Files that are whole or absent: a full disk is waited for, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pmlray import atomic_files
from pmlray.atomic_files import write_all_over, write_once, write_over


def test_written_once_or_replaced_as_a_whole(tmp_path: Path) -> None:
    assert write_once(tmp_path / "a", b"first") and not write_once(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    write_over(tmp_path / "a", b"third")
    assert (tmp_path / "a").read_bytes() == b"third"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_once(tmp_path / "a", b"")
        write_over(tmp_path / "b", b"")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_of_several_files_all_are_replaced_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [tmp_path / name for name in "abc"]
    write_all_over(dict.fromkeys(names, b"old"))
    FullDisk(10**9, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_all_over(dict.fromkeys(names, b"new"))
    assert sorted(tmp_path.iterdir()) == names
    assert all(path.read_bytes() == b"old" for path in names)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    write_over(tmp_path / "a", b"new")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_bytes() == b"new"


class FullDisk:
    """Refuses to bring anything to the disk for so many times."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self._fsync = times, os.fsync
        monkeypatch.setattr(os, "fsync", self)
        monkeypatch.setattr(atomic_files, "RETRY_SECONDS", 0.0)

    def __call__(self, handle: int) -> None:
        if self.times > 0:
            self.times -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(handle)


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(3, monkeypatch)
    assert write_once(tmp_path / "a", b"kept", patience=60)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"kept")]


def test_a_disk_that_stays_full_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_once(tmp_path / "a", b"old")
    FullDisk(10**9, monkeypatch)
    for write in (write_once, write_over):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "b" if write is write_once else tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
