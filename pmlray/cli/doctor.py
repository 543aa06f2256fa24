"""`pmlray doctor`: is this machine ready, and if not, what to do; `doctor tokens` is beside."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

import typer
from packaging.requirements import Requirement

from pmlray.cli.output import JSON_OPTION, emit
from pmlray.cli.token_commands import tokens
from pmlray.config.models import PULLABLE, PULLED_MARK, cache_root, pulled_folder

State = Literal["ok", "warn", "fail"]
MIN_FREE_GIB = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: what was looked at, how it is, what was found or what to do."""

    name: str
    state: State
    detail: str


doctor = typer.Typer(invoke_without_command=True)
doctor.command()(tokens)


@doctor.callback()
def check_machine(context: typer.Context, as_json: bool = JSON_OPTION) -> None:
    """Check versions, device, disk and base models; exit code 2 when something must be mended."""
    if context.invoked_subcommand is not None:
        return
    checks = [_python(), *_packages(), _device(), _disk(), *_models(), _ray_address()]
    healthy = all(check.state != "fail" for check in checks)
    lines = [f"{check.state:4}  {check.name}: {check.detail}" for check in checks]
    emit({"healthy": healthy, "checks": [asdict(c) for c in checks]}, "\n".join(lines), as_json)
    raise typer.Exit(0 if healthy else 2)


def _python() -> Check:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    detail = platform.python_version() if good else f"{platform.python_version()}; use 3.11 or 3.12"
    return Check("python", "ok" if good else "fail", detail)


def _packages() -> list[Check]:
    checks = []
    try:
        declared = requires("pmlray") or []
    except PackageNotFoundError:
        return [Check("pmlray", "warn", "runs from source, not installed; run: pip install -e .")]
    for text in declared:
        need = Requirement(text)
        extra = need.marker is not None and "train" in str(need.marker)
        if need.marker is not None and not extra:
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            remedy = "pip install 'pmlray[train]'" if extra else "pip install pmlray"
            state: State = "warn" if extra else "fail"
            checks.append(Check(need.name, state, f"not installed; run: {remedy}"))
            continue
        # A local build such as 2.13.0+cpu is that version.
        good = need.specifier.contains(found.split("+")[0], prereleases=True)
        detail = found if good else f"{found}, but {need.specifier} is needed"
        checks.append(Check(need.name, "ok" if good else "fail", detail))
    return checks


def _device() -> Check:
    cores = os.cpu_count()
    try:
        import torch
    except ImportError:
        return Check("device", "warn", f"{cores} cores; no torch here: submit to a cluster")
    if torch.cuda.is_available():
        return Check("device", "ok", f"{torch.cuda.get_device_name()}, {cores} cores")
    return Check("device", "ok", f"no GPU, {cores} cores: searches run on the CPU")


def _disk() -> Check:
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    state: State = "ok" if free >= MIN_FREE_GIB else "warn"
    return Check("disk", state, f"{free:.0f} GiB free here; a search wants {MIN_FREE_GIB}")


def _models() -> list[Check]:
    checks = []
    for name in PULLABLE:
        here = (pulled_folder(name) / PULLED_MARK).is_file()
        detail = str(pulled_folder(name)) if here else f"not pulled; run: pmlray models pull {name}"
        checks.append(Check(name, "ok" if here else "warn", detail))
    writable = os.access(
        next(p for p in (cache_root(), *cache_root().parents) if p.exists()), os.W_OK
    )
    state: State = "ok" if writable else "fail"
    checks.append(Check("cache", state, f"{cache_root()}{'' if writable else ' is not writable'}"))
    return checks


def _ray_address() -> Check:
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    detail = address or "no cluster address set; searches start Ray on this machine"
    return Check("ray address", "ok", detail)
