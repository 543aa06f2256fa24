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
    """Wait until every module that the MLflow thread imports is fully imported.

    altair checks for the data frame types of every library already loaded. pandas counts as loaded
    as soon as its import begins, before it has the attributes that altair reads.
    """
    for name in ("pandas", "pmlray.backends.mlflow.tracker"):
        # Neither is there without the train extra.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def machine_facts() -> dict[str, Any]:
    """Return the machine that a result was measured on, and the versions that matter."""
    versions = {"pmlray": __version__}
    for name in ("ray", "optuna", "mlflow-skinny", *TRAIN_PACKAGES, "peft"):
        # The train extra may be missing: a replay does not need it.
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": versions,
    }
