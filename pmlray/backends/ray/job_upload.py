"""Upload of a search to a cluster: pmlray's own source and the search's files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pmlray.errors import SpecError
from pmlray.version import SOURCE

# Below Ray's own limit of 100 MiB, which it reports as a bare HTTP 413.
MAX_UPLOAD_BYTES = 50 * 2**20


def pack_working_dir(archive: Path, files: Mapping[str, Path]) -> int:
    """Write the .zip to upload: pmlray's own source and the search's files, by their target names.

    A file may be a folder. The cluster then runs the very code that validated the search. Returns
    the size in bytes; SpecError when it is too large.
    """
    source = {"pmlray": SOURCE}
    # Ray would pack a folder without compressing it, four times as large.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, path in _each_file({**source, **files}):
            # Without time stamps: Ray recognises an archive that it already has by its content.
            packed.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    size = archive.stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise SpecError(
            f"the search's files are {size / 2**20:.0f} MiB; copy them with the search file to the"
            " cluster's storage and start it there (cluster/README.md makes job.zip): ray job"
            " submit --working-dir job.zip --runtime-env cluster/runtime_env.yaml -- python -m"
            " pmlray search /STORAGE/search.yaml"
        )
    return size


def _each_file(named: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield all files in these files and folders, with their names in the archive."""
    for name, path in named.items():
        if not path.is_dir():
            yield name, path
            continue
        for below in sorted(path.rglob("*")):
            if below.is_file() and "__pycache__" not in below.parts:
                yield f"{name}/{below.relative_to(path).as_posix()}", below
