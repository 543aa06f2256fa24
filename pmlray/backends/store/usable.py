"""What a folder must be for a driver to work on it as a store, found out before anything starts."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pmlray.engine.runtime.checkpoint_header import CHECKPOINT_VERSION, version_of
from pmlray.errors import StoreError, StoreRefused

# What file systems answer that have no hard links: FAT, most of FUSE, object storage.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)


def require_usable(store: Path) -> None:
    """Return where a driver can work on this store.

    Raises:
        StoreError: files cannot be made there, or hard links, by which a file is either whole or
            not there; or a link in the store leads elsewhere.
        StoreRefused: a newer version of pmlray has left a checkpoint, which this one would lose.
    """
    require_links(store)
    require_own(store)
    for path in store.glob("checkpoints/*/*.safetensors"):
        if version_of(path) > CHECKPOINT_VERSION:
            raise StoreRefused(
                f"{path} is of a newer version of pmlray: continue this search with that version,"
                " or choose another --store; nothing here was changed"
            )


def require_links(folder: Path) -> None:
    """Return where files and hard links can be made in a folder; StoreError otherwise."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-") as probe:
            file = Path(probe) / "file"
            file.touch()
            os.link(file, Path(probe) / "link")
    except OSError as error:
        if error.errno in NO_LINKS and error.filename2 is not None:
            raise StoreError(
                f"the file system of {folder} has no hard links ({error.strerror}), by which a"
                " file of a store is whole or not there: choose a folder of another one (ext4, XFS,"
                " NFS, EFS, Lustre; not FAT, nor a mounted bucket)"
            ) from error
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}); mend its permissions, make room on its"
            " disk, or choose another folder"
        ) from error


def require_own(store: Path, part: str = "") -> None:
    """Return where no file of a store, or of a folder in it, lies elsewhere; StoreError, naming it,
    otherwise. The store itself may be reached through a link."""
    links = [store / part] if part and (store / part).is_symlink() else links_in(store / part)
    for found in links:
        raise StoreError(
            f"{found} is a symbolic link, and nothing is written or sent through links of a store,"
            " which others may have made: put what it leads to in its place, or choose another"
            " folder"
        )


def links_in(store: Path) -> Iterator[Path]:
    """Yield the symbolic links below a folder, without following any."""
    folders = [str(store)]
    while folders:
        # One that is gone by now, or that cannot be read, cannot be written through either.
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                # Both are told by the folder itself: nothing is asked of a server for each file.
                if entry.is_symlink():
                    yield Path(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
