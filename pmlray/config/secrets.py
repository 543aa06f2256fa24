"""Secrets come from the environment or from files: an argument can be read by everybody who may
list processes or a cluster's jobs."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from pmlray.errors import SpecError

SECRET_KEYS = ("password", "sslpassword")


def no_password(uri: str | None) -> str | None:
    """An address that was given as an argument; SpecError, without it, for one with a password."""
    if uri is None:
        return None
    try:
        parts = urlsplit(uri)
        secret = parts.password or [k for k in SECRET_KEYS if k in parse_qs(parts.query)]
    except ValueError as error:
        raise SpecError(f"an address cannot be read: {error}") from error
    if secret:
        raise SpecError(
            f"the address at {parts.hostname} holds a password, and everybody who lists processes"
            " or jobs sees arguments; for PostgreSQL put it into ~/.pgpass, for an MLflow server"
            " into ~/.mlflow/credentials or MLFLOW_TRACKING_PASSWORD, or give the whole address as"
            " MLFLOW_TRACKING_URI"
        )
    return uri
