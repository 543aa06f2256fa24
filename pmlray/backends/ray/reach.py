"""Question to the head of a Ray cluster whether it is there, answered within seconds.

`ray.init` itself tries an address for minutes, whatever listens there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pmlray.errors import ClusterAway, SpecError
from pmlray.version import shipped

if TYPE_CHECKING:
    import grpc

# Longest wait for the answer of a busy head, and time within which a connection that is refused at
# once is tried again.
ANSWER_SECONDS, AGAIN_SECONDS, PAUSE_SECONDS = 8.0, 2.0, 0.5
# Ray's own client port, which has none of the head's services.
CLIENT = "ray://"
OTHERWISE = (
    "give the address of one that runs (--address, RAY_ADDRESS), or `--address local` to start Ray"
    " on this machine"
)


def require_cluster(address: str) -> None:
    """Return where the head of a Ray cluster answers at this address, with this machine's token.

    Args:
        address: HOST:PORT of the head, `auto`, or ray://HOST:PORT.

    Raises:
        ClusterAway: nobody answers there, or another kind of server, or the token is refused.
        SpecError: the address cannot be read.
    """
    import grpc

    where = _resolved(address)
    until = time.monotonic() + AGAIN_SECONDS
    while (error := _asked(where)) is not None:
        code = error.code()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterAway(
                f"the Ray cluster at {address} refused the token, or got none: set"
                " RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token,"
                f" ~/.ray/auth_token of its head ({shipped('cluster/README.md')})"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED and address.startswith(CLIENT):
            return
        if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() >= until:
            raise ClusterAway(
                f"no Ray cluster answers at {address} ({_told(error)}), which --address or"
                f" RAY_ADDRESS names; {OTHERWISE}"
            )
        time.sleep(PAUSE_SECONDS)


def _resolved(address: str) -> str:
    """Return HOST:PORT of an address, looking for a cluster on this machine where it is `auto`."""
    from ray._private.authentication.authentication_token_setup import (
        ensure_token_if_auth_enabled,
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.services import canonicalize_bootstrap_address
    from ray.exceptions import AuthenticationError

    if address == "auto":
        # As ray.init does for a cluster of this machine.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        if address.startswith(CLIENT):
            return address.removeprefix(CLIENT)
        # As ray.init does, which asks a head of this machine by the machine's address.
        found = canonicalize_bootstrap_address(address)
    except AuthenticationError as error:
        raise ClusterAway(
            "RAY_AUTH_MODE is token, and there is no token on this machine: copy"
            " ~/.ray/auth_token of the cluster's head, and name its place in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{address} is no address of a Ray cluster ({error}): give HOST:PORT of its head, such"
            " as 10.0.0.1:6379"
        ) from error
    if found is None:
        raise ClusterAway(f"no Ray runs on this machine for the address {address}; {OTHERWISE}")
    return found


def _asked(where: str) -> grpc.RpcError | None:
    """Return why the head did not say that it is there; None where it did."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    # Of a module without types.
    messages: Any = gcs_service_pb2
    # As Ray's own clients, which know of no proxy.
    channel = init_grpc_channel(where, [("grpc.enable_http_proxy", 0)])
    try:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        head.CheckAlive(messages.CheckAliveRequest(), timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        return error
    finally:
        channel.close()
    return None


def _told(error: grpc.RpcError) -> str:
    """Return the last of what gRPC tells, which is the cause."""
    import grpc

    details = (error.details() or error.code().name).rpartition("last error: ")[2]
    if error.code() is grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        return "what listens there is no head of Ray"
    return details[:200]
