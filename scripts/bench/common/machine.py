"""Machine and versions that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    packages = ("numpy", "scipy", "optuna")
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
