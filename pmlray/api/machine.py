"""Machine and versions of a result, and packages that training needs."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pmlray.version import __version__

TRAIN_PACKAGES = ("torch", "transformers", "deepspeed", "pandas")


def await_imports() -> None:
    """Wait until all is imported that the thread which reaches MLflow imports.

    Of the data frames of other libraries that are known by name, as pandas' are as soon as its
    import has begun, altair asks what they do not have yet.
    """
    for name in ("pandas", "pmlray.backends.mlflow.tracker"):
        # Without the train extra there is neither.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def machine_facts() -> dict[str, Any]:
    """Return the machine that a result was measured on, and the versions that count."""
    versions = {"pmlray": __version__}
    for name in ("ray", "optuna", "mlflow-skinny", *TRAIN_PACKAGES, "peft"):
        # A replay needs no train extra.
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": versions,
    }
