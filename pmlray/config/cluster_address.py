"""Addresses of a Ray cluster: its head, and its Jobs API.

The latter is refused where a token would travel in clear text.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from pmlray.errors import SpecError

# A Ray that starts on this machine, and ends with the command.
LOCAL = "local"


def ray_address(option: str | None) -> str:
    """Return the address given by --address or RAY_ADDRESS, LOCAL where there is none.

    SpecError for one of another kind, such as that of the Jobs API.

    Example:
        >>> ray_address("10.0.0.1:6379")
        '10.0.0.1:6379'
    """
    address = option or os.environ.get("RAY_ADDRESS") or LOCAL
    named = "--address" if option else "RAY_ADDRESS"
    scheme, there, _ = address.partition("://")
    if there and scheme in ("http", "https"):
        raise SpecError(
            f"{named} is {address}, the address of a Jobs API, which is for `pmlray submit`"
            " (RAY_API_SERVER_ADDRESS); here give that of the cluster's head, such as"
            " 10.0.0.1:6379, or `--address local` to start Ray on this machine"
        )
    if there and scheme != "ray":
        raise SpecError(
            f"{named} is {address}, which is no address of a Ray cluster: give HOST:PORT of its"
            " head, such as 10.0.0.1:6379, or `--address local` to start Ray on this machine"
        )
    return address


def jobs_address(option: str | None, allow_clear_text: bool) -> str:
    """Return the address given by --address or RAY_API_SERVER_ADDRESS.

    SpecError when there is none, when it is no http(s) address, when it holds a user or password,
    or when it is plain http to another machine and that was not allowed: the token and the search
    would be readable on the way.
    """
    address = option or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise SpecError("give --address http://127.0.0.1:8265 or set RAY_API_SERVER_ADDRESS")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(
            f"{address} is no address of a Ray cluster's Jobs API; give http://127.0.0.1:8265"
        )
    if parts.username is not None or parts.password is not None:
        raise SpecError("leave the password out of the address; Ray's token is RAY_AUTH_TOKEN_PATH")
    if parts.scheme == "http" and not allow_clear_text and not _is_this_machine(parts.hostname):
        raise SpecError(
            f"{address} would send the token in clear text; forward the port to this machine"
            f" (ssh -L 8265:localhost:8265 {parts.hostname}, kubectl port-forward, ray dashboard)"
            " and give http://127.0.0.1:8265, use https, or say --clear-text on a private network"
        )
    return address.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
