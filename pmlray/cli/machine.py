"""What a result was measured on, and what training needs to be installed."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pmlray import __version__

TRAIN_PACKAGES = ("torch", "transformers", "deepspeed", "pandas")


def have_pandas_whole() -> None:
    """Wait until pandas is imported, where it is installed.

    The thread that reaches MLflow imports it; altair, which draws meanwhile, would take it for
    whole as soon as its name is known.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("pandas")


def machine_facts() -> dict[str, Any]:
    """What a result was measured on: the machine, and the versions of what counts."""
    versions = {"pmlray": __version__}
    for name in ("ray", "optuna", "mlflow-skinny", *TRAIN_PACKAGES, "peft"):
        # A replay needs no train extra.
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": versions,
    }
