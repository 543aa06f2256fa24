"""What a search takes along to a cluster: pmlray's own source and the search's files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pmlray
from pmlray.errors import SpecError

# Below Ray's own limit of 100 MiB, which it reports as a bare HTTP 413.
MAX_UPLOAD_BYTES = 50 * 2**20


def stage_working_dir(folder: Path, files: Mapping[str, Path]) -> int:
    """Fill a folder for upload: pmlray's own source and the search's files, by their target names.

    A file may be a folder. The cluster then runs the very code that validated the search. Returns
    the size in bytes; SpecError when it is too large.
    """
    source = Path(pmlray.__file__).parent
    shutil.copytree(source, folder / "pmlray", ignore=shutil.ignore_patterns("__pycache__"))
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_UPLOAD_BYTES:
        raise SpecError(
            f"the search's files are {size / 2**20:.0f} MiB; copy them with the search file to the"
            " cluster's storage and start it there: ray job submit --working-dir . --runtime-env"
            " cluster/runtime_env.yaml -- python -m pmlray search /STORAGE/search.yaml"
        )
    return size
