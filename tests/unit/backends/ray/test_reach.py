"""A head that is not there, is no Ray, or wants a token, told within seconds; real servers."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from pmlray.backends.ray.reach import require_cluster
from pmlray.backends.ray.session import ray_session
from pmlray.errors import ClusterAway, SpecError
from tests.integration.conftest import free_port

# Of ten in which it is to be told, `pmlray` itself takes some to start.
SECONDS = 6.0


@contextmanager
def listening(server: http.server.HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """The one service of a head that is asked, which wants a token or none."""

    def __init__(self, token: str) -> None:
        self._token = token

    def CheckAlive(self, request: Any, context: Any) -> Any:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if self._token and sent != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid token")
        return gcs_service_pb2.CheckAliveReply()


@contextmanager
def head(token: str = "") -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Head(token), server)
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(10)


def refused(address: str) -> str:
    began = time.monotonic()
    with pytest.raises(ClusterAway) as caught, ray_session(address):
        raise AssertionError("joined a cluster that is none")
    assert time.monotonic() - began < SECONDS
    return str(caught.value)


def test_where_nobody_listens() -> None:
    address = f"127.0.0.1:{free_port()}"
    said = refused(address)
    assert address in said and "Connection refused" in said
    assert "RAY_ADDRESS" in said and "--address local" in said and "disk" not in said


def test_where_another_server_listens() -> None:
    with listening(
        http.server.HTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    ) as where:
        assert f"answers at {where} (what listens there is no head of Ray)" in refused(where)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        assert "is no head of Ray" in refused(f"127.0.0.1:{port}")
        # Ray's client port has none of the head's services.
        require_cluster(f"ray://127.0.0.1:{port}")
    finally:
        server.stop(None).wait(10)


def test_a_head_answers_and_one_that_wants_a_token_says_so() -> None:
    with head() as where:
        require_cluster(where)
    with head("a" * 64) as where:
        said = refused(where)
        assert "RAY_AUTH_MODE=token" in said and "RAY_AUTH_TOKEN_PATH" in said


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:abc", "no such host:6379"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises((SpecError, ClusterAway)):
        require_cluster(address)
