"""An MLflow server as cluster/mlflow/compose.yaml sets it up: PostgreSQL, a bucket, and logins.

The bucket is that of an S3 server on this machine (moto) instead of MinIO.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT, end_group
from tests.postgres import postgres_server, require_binaries

CLUSTER = ROOT / "cluster"
SECRET = "5" * 48
START_SECONDS = 90


@dataclass(frozen=True)
class Mlflow:
    """A running server. `login`: the environment of a client of it; `s3`: of one of its bucket."""

    uri: str
    login: dict[str, str]
    s3: dict[str, str]

    def objects(self) -> list[str]:
        """The keys of all that is in the bucket."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.s3["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=self.s3["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.s3["AWS_SECRET_ACCESS_KEY"],
            region_name=self.s3["AWS_DEFAULT_REGION"],
        )
        return [found["Key"] for found in client.list_objects_v2(Bucket="mlflow")["Contents"]]


@contextmanager
def composed_server(folder: Path, port: int) -> Iterator[Mlflow]:
    """The services of the compose file on this machine, the user `pmlray` among those it knows."""
    services = yaml.safe_load((CLUSTER / "mlflow" / "compose.yaml").read_text())["services"]
    with postgres_server(require_binaries()) as database, _s3_server() as s3:
        bucket = _filled(services["bucket"], s3, database)
        # Twice, as whenever the services start again.
        for _ in range(2):
            subprocess.run(
                [sys.executable, *services["bucket"]["command"][1:]],
                env={**os.environ, **bucket}, check=True, timeout=60,
            )  # fmt: skip
        settings = {
            **_filled(services["mlflow"], s3, database),
            "HOME": str(folder),
            "PATH": f"{_on_port(folder, port)}{os.pathsep}{os.environ['PATH']}",
        }
        uri = f"http://127.0.0.1:{port}"
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                ["sh", str(CLUSTER / "mlflow" / "serve.sh")],
                env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT, text=True,
                cwd=folder, start_new_session=True,
            )  # fmt: skip
        try:
            _wait_for(uri, server, folder / "log")
            _add_user(port, settings)
            login = {"MLFLOW_TRACKING_USERNAME": "pmlray", "MLFLOW_TRACKING_PASSWORD": SECRET}
            yield Mlflow(uri, login, bucket)
        finally:
            end_group(server)


@contextmanager
def _s3_server() -> Iterator[str]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        reason = "needs an S3 server (moto[s3], of the dev extra)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _filled(service: dict[str, Any], s3: str, database: str) -> dict[str, str]:
    """A service's environment, with what docker compose and its network would put into it."""

    def fill(value: str) -> str:
        value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value.replace("http://minio:9000", s3))
        value = re.sub(r"\$\{\w+:\?[^}]*\}", SECRET, value)
        return database if value.startswith("postgresql://") else value

    return {name: fill(value) for name, value in service["environment"].items()}


def _on_port(folder: Path, port: int) -> Path:
    """A folder with an `mlflow` for this machine alone, where port 5000 may be taken."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "mlflow"
    place = f"--host 127.0.0.1 --port {port} --workers 1"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlflow "$@" {place}\n')
    command.chmod(0o755)
    return command.parent


def _wait_for(uri: str, server: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            said = log.read_text()[-2000:]
            assert server.poll() is None and time.monotonic() < end, said
            # Another process' port tells of nothing before it answers.
            time.sleep(0.2)


def _add_user(port: int, settings: dict[str, str]) -> None:
    """As cluster/README.md does it in the server's container."""
    script = (CLUSTER / "mlflow" / "add_user.py").read_text().replace(":5000", f":{port}")
    subprocess.run(
        [sys.executable, "-c", script, "pmlray"],
        input=SECRET, text=True, env={**os.environ, **settings}, check=True, timeout=60,
    )  # fmt: skip
