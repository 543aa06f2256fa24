"""Upload of a search to a cluster: pmlray's own source and the search's files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pmlray.config.adapters.peft_config import BLOCK_CONFIG_FILE, CONFIG_FILE, WEIGHTS_FILE
from pmlray.config.bases.model_spec import Model
from pmlray.errors import SpecError
from pmlray.version import SOURCE, shipped

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
            f" cluster's storage and start it there ({shipped('cluster/README.md')} makes job.zip):"
            f" ray job submit --working-dir job.zip --runtime-env"
            f" {shipped('cluster/runtime_env.yaml')} -- python -m pmlray search"
            " /STORAGE/search.yaml"
        )
    return size


def start_files(folder: Path, place: str, model: Model, scratch: Path) -> dict[str, Path]:
    """Return the files of an adapter that runs begin with, by their target names below `place`.

    Its config is written anew to `scratch`: it names the base as the search does, by which it was
    found to be the same one, since the cluster may have it in another folder.
    """
    block = (folder / BLOCK_CONFIG_FILE).is_file()
    name = BLOCK_CONFIG_FILE if block else CONFIG_FILE
    config = json.loads((folder / name).read_text(encoding="utf-8"))
    named = {"base_model_name_or_path": model.id, "revision": model.revision}
    config |= {"base_model": model.id} if block else named
    (scratch / name).write_text(json.dumps(config), encoding="utf-8")
    return {f"{place}/{name}": scratch / name, f"{place}/{WEIGHTS_FILE}": folder / WEIGHTS_FILE}


def _each_file(named: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield all files in these files and folders, with their names in the archive."""
    for name, path in named.items():
        if not path.is_dir():
            yield name, path
            continue
        for below in sorted(path.rglob("*")):
            if below.is_file() and "__pycache__" not in below.parts:
                yield f"{name}/{below.relative_to(path).as_posix()}", below
