"""Addresses of MLflow, refused where MLflow takes no such kind."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from pmlray.errors import SpecError

SERVERS = ("http", "https")
# The databases that MLflow keeps its records in, with or without a driver: postgresql+psycopg.
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
TRACKING_SCHEMES = (*SERVERS, *DATABASES)
# Entry points by which packages give MLflow further kinds of store.
PLUGINS = "mlflow.tracking_store"
FILES = "MLFLOW_ALLOW_FILE_STORE"


def why_not_tracked(uri: str) -> str | None:
    """Return why MLflow takes no such address, with what it takes; None where it does.

    The address itself, which may hold a password, is not quoted.

    Example:
        >>> why_not_tracked("http://127.0.0.1:5000") is None
        True
    """
    scheme, of_url, _ = uri.partition("://")
    scheme = scheme.partition("+")[0].lower() if of_url else ""
    if scheme in TRACKING_SCHEMES:
        return None
    if scheme in {found.name for found in entry_points(group=PLUGINS)}:
        return None
    files = scheme in ("", "file") and uri not in ("databricks", "databricks-uc")
    if files and os.environ.get(FILES, "").lower() in ("true", "1"):
        return None
    kinds = f"{', '.join(f'{known}://' for known in SERVERS)} for a server"
    kinds += f", {', '.join(f'{known}://' for known in DATABASES)} for a database"
    kind = "without a scheme, or a folder's" if files else f"{scheme or uri}://"
    return (
        f"MLflow's address is {kind}; supported are {kinds}, such as http://127.0.0.1:5000 or"
        " sqlite:////FOLDER/mlflow.db; without an address each search has a database in its store"
    )


def tracking_address(uri: str, named: str) -> str:
    """Return an address of MLflow; SpecError where MLflow takes no such kind.

    named: the option or variable that gave it.
    """
    if (why := why_not_tracked(uri)) is not None:
        raise SpecError(f"{named}: {why}")
    return uri
