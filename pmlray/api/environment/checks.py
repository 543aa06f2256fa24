"""Checks of `pmlray doctor`: each is one line, with the remedy where it is not ok."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from pmlray.backends.store.usable import require_links
from pmlray.config.bases.models import PULLABLE, cache_root, require_present, resolve_model
from pmlray.config.store_folder import why_no_folder
from pmlray.errors import (
    INSTALL_DRAW,
    INSTALL_NOTEBOOK,
    INSTALL_TRAIN,
    PmlrayError,
    SpecError,
    StoreError,
)
from pmlray.version import SOURCE

CheckState = Literal["ok", "warn", "fail"]
MIN_FREE_GIB = 5.0
MIN_MEMORY_GIB = 4.0
LOCK = "requirements.lock"


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check: its name, state, finding and remedy."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """Return the check as one line of text."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.state:4}  {self.name}: {self.detail}{remedy}"


def python_version() -> Check:
    """Check the version of Python: 3.11 or 3.12."""
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    remedy = "" if good else "use Python 3.11 or 3.12"
    return Check("python", "ok" if good else "fail", platform.python_version(), remedy)


_INSTALL = {
    None: "pip install -e . in your clone of pmlray",
    "train": INSTALL_TRAIN,
    "draw": INSTALL_DRAW,
    "notebook": INSTALL_NOTEBOOK,
}


def packages() -> Iterator[Check]:
    """Check the packages that pmlray declares; yield one result per package."""
    try:
        declared = requires("pmlray") or []
    except PackageNotFoundError:
        yield Check("pmlray", "warn", "runs from source, not installed", "run: pip install -e .")
        return
    seen = {"pmlray"}
    for text in declared:
        need = Requirement(text)
        extra = None if need.marker is None else str(need.marker).rpartition(" ")[2].strip("\"'")
        # A package of an extra may be one of pmlray itself, and an extra may name another.
        if extra not in _INSTALL or need.name in seen:
            continue
        seen.add(need.name)
        install, found = _INSTALL[extra], _installed(need.name)
        if found is None:
            state = "fail" if extra is None else "warn"
            yield Check(need.name, state, "not installed", f"run: {install}")
        elif need.specifier.contains(found, prereleases=True):
            yield Check(need.name, "ok", found)
        else:
            yield Check(
                need.name, "fail", f"{found}, but {need.specifier} is needed", f"run: {install}"
            )


def locked_versions() -> Check:
    """Check the installed versions against requirements.lock, with which pmlray is tested."""
    lock = SOURCE.parent / LOCK
    if not lock.is_file():
        return Check(LOCK, "ok", "not here; versions are held to the ranges above")
    pinned = re.findall(r"^([\w.-]+)==([\w.+!-]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    other = [
        f"{name} {found} ({wanted})"
        for name, wanted in pinned
        if (found := _installed(name)) is not None and found != wanted.split("+")[0]
    ]
    if not other:
        return Check(LOCK, "ok", f"none of its {len(pinned)} packages is of another version here")
    shown = ", ".join(other[:8]) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
    return Check(
        LOCK, "warn", f"not the tested versions: {shown}", f"run: pip install --no-deps -r {lock}"
    )


def device() -> Check:
    """Check the device that searches would train on here."""
    cores = os.cpu_count()
    try:
        import torch
    except ImportError:
        return Check(
            "device",
            "warn",
            f"{cores} cores, no torch",
            f"submit to a cluster, or run: {INSTALL_TRAIN}",
        )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        return Check("device", "ok", f"{torch.cuda.get_device_name()}, {memory}, {cores} cores")
    from pmlray.engine.model.device import multiplies_bfloat16

    slow = not multiplies_bfloat16(torch.device("cpu"))
    also = ", which computes bases of bfloat16 in float32" if slow else ""
    return Check("device", "ok", f"no GPU, {cores} cores: searches run on the CPU{also}")


def memory() -> Check:
    """Check free main memory, within a container's limit."""
    found = available_bytes()
    if found is None:
        return Check("memory", "ok", "this system does not tell")
    free = found / 2**30
    if free >= MIN_MEMORY_GIB:
        return Check("memory", "ok", f"{free:.1f} GiB free")
    return Check(
        "memory",
        "warn",
        f"{free:.1f} GiB free",
        f"close other programs: training here wants {MIN_MEMORY_GIB:.0f} GiB",
    )


def storage(name: str, folder: Path, *, links: bool = False) -> Check:
    """Check that a folder, or its nearest existing parent, is no URL, is writable and has enough
    space; links: that its file system has hard links."""
    if (why := why_no_folder(folder)) is not None:
        return Check(name, "fail", why, _elsewhere())
    folder = folder.absolute()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        if links:
            require_links(place)
    except OSError as error:
        return Check(name, "fail", f"{folder} cannot be written ({error.strerror})", _elsewhere())
    except StoreError as error:
        return Check(name, "fail", str(error), _elsewhere())
    free = shutil.disk_usage(place).free / 2**30
    detail = f"{folder}, {free:.0f} GiB free"
    if free >= MIN_FREE_GIB:
        return Check(name, "ok", detail)
    return Check(name, "warn", detail, f"make room: a search wants {MIN_FREE_GIB:.0f} GiB")


def base_model(model_id: str | None, revision: str | None) -> Iterator[Check]:
    """Check that the named base model, or without a name each pullable one, is available."""
    for name in PULLABLE if model_id is None else (model_id,):
        try:
            source = resolve_model(name, revision)
            require_present(name, source)
        except PmlrayError as error:
            yield Check(f"model {name}", "warn" if model_id is None else "fail", str(error))
            continue
        here = str(source.folder) if source.folder else "taken from the hub when a search starts"
        yield Check(f"model {name}", "ok", here)


def models_cache() -> Check:
    """Check the folder of base models."""
    try:
        return storage("cache", cache_root())
    except SpecError as error:
        return Check("cache", "fail", str(error), _elsewhere())


def ray_token() -> Check:
    """Check the token of Ray's token authentication."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode != "token":
        return Check("ray token", "ok", "not used (RAY_AUTH_MODE=token turns it on)")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check("ray token", "ok", "in RAY_AUTH_TOKEN")
    if not file.is_file():
        return Check(
            "ray token",
            "fail",
            f"RAY_AUTH_MODE is token, and there is no {file}",
            "copy the cluster's ~/.ray/auth_token there, or name its place in RAY_AUTH_TOKEN_PATH",
        )
    if file.stat().st_mode & 0o077:
        return Check("ray token", "warn", f"others can read {file}", f"run: chmod 600 {file}")
    return Check("ray token", "ok", str(file))


def reached(name: str, where: str | None, nowhere: str, ask: Callable[[str], str]) -> Check:
    """Check a service: `ask(where)` returns a finding or raises a PmlrayError with the remedy.

    Without `where` the check is ok, with `nowhere` as its finding.
    """
    if not where:
        return Check(name, "ok", nowhere)
    try:
        return Check(name, "ok", ask(where))
    except PmlrayError as error:
        return Check(name, "fail", str(error))


def _installed(name: str) -> str | None:
    """Return the installed version without its local part (2.13.0+cpu is 2.13.0), or None."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return free main memory in bytes, within the limit of this process's control group.

    None where the system does not report it.
    """
    if not meminfo.is_file():
        return None
    rows = dict(row.split(":", 1) for row in meminfo.read_text().splitlines())
    free = int(rows["MemAvailable"].split()[0]) * 1024
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int((group / "memory.current").read_text()))
    return free


def _elsewhere() -> str:
    return "choose another folder (--store, PMLRAY_STORE, PMLRAY_CACHE) or mend its permissions"
