"""Checks that keep passwords out of arguments and outputs.

Secrets come from the environment or from files: an argument can be read by everybody who may list
processes or a cluster's jobs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from pmlray.errors import SpecError

SECRET_KEYS = ("password", "sslpassword")


def no_password(uri: str | None) -> str | None:
    """Return an address given as an argument; SpecError, not quoting it, if it has a password."""
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


def without_credentials(value: Any) -> Any:
    """Return the same facts with `user:password@` and `password=` removed from every address."""
    if isinstance(value, str):
        value = re.sub(r"(?<=://)[^/?\s]+@", "", value)
        return re.sub(r"(?<=[?&])(ssl)?password=[^&\s]*&?", "", value)
    if isinstance(value, Mapping):
        facts = cast("Mapping[Any, Any]", value)
        return {str(k): without_credentials(v) for k, v in facts.items()}
    if isinstance(value, Sequence):
        return [without_credentials(v) for v in cast("Sequence[Any]", value)]
    return value
