"""Several people on one real MLflow server with logins: whose runs go where, and what each sees."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.server import get_app_client

from pmlray.backends.mlflow.parents import StudyInMlflow, newest_parent
from pmlray.backends.mlflow.tracker import MlflowTracker
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.errors import TrackerAway
from pmlray.types import Observation
from tests.fakes import observe
from tests.integration.conftest import SMOKE, end_group, free_port
from tests.mlflow_runs import all_runs

pytestmark = pytest.mark.slow

START_SECONDS = 120
PASSWORD = "a-long-enough-one"


@dataclass(frozen=True)
class Server:
    """A server with the users ada and bob."""

    uri: str
    patch: pytest.MonkeyPatch

    def login(self, name: str) -> None:
        """Be this user from now on."""
        self.patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        self.patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@contextmanager
def serving(folder: Path, permission: str) -> Iterator[str]:
    """A server on which a login has `permission` for what others made; its address."""
    config, uri = folder / "auth.ini", f"http://127.0.0.1:{(port := free_port())}"
    config.write_text(
        f"[mlflow]\ndefault_permission = {permission}\nadmin_username = admin\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # A password takes long to check, and every request has one.
        "auth_cache_ttl_seconds = 600\n"
    )
    own = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
           "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
           "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers",
               "1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'runs.db'}",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, text=True,
            cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                ended = process.poll() is not None or time.monotonic() > end
                assert not ended, (folder / "log").read_text()[-2000:]
                # Another process' port tells of nothing before it answers.
                time.sleep(0.2)
        yield uri
    finally:
        end_group(process)


@pytest.fixture(scope="module", params=["READ", "NO_PERMISSIONS"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One whose logins see what others have, and one whose logins do not."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, request.param) as uri, pytest.MonkeyPatch.context() as patch:
        found = Server(uri, patch)
        found.login("admin")
        users = get_app_client("basic-auth", uri)
        for name in ("ada", "bob"):
            users.create_user(name, PASSWORD)
        yield found


@pytest.fixture(scope="module")
def search() -> PreparedSearch:
    return prepare_search(SMOKE)


@pytest.fixture(scope="module")
def measured(search: PreparedSearch) -> list[Observation]:
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:3]]
    return [observe(run, 0, i, 0.02, 1e-3) for i, run in enumerate(runs)]


def test_each_login_works_where_it_may_and_stores_do_not_mix(
    server: Server, search: PreparedSearch, measured: list[Observation], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    search_id, spec = search.spec.search_id, search.spec.model_dump(mode="json")

    def track(store: str) -> MlflowTracker:
        study = StudyInMlflow(search_id, "lab", store * 12, tmp_path / store)
        return MlflowTracker(server.uri, study, spec)

    def experiment_of(tracker: MlflowTracker) -> str:
        run = MlflowClient(server.uri).get_run(tracker.identity)
        return MlflowClient(server.uri).get_experiment(run.info.experiment_id).name

    server.login("ada")
    of_ada = track("a")
    of_ada.observe(measured[:2])
    assert experiment_of(of_ada) == "lab" and "may not write" not in caplog.text
    server.login("bob")
    of_bob = track("b")
    of_bob.observe(measured)
    assert experiment_of(of_bob) == "lab (bob)"
    assert "bob may not write to the experiment lab of MLflow" in caplog.text
    # He goes on with ada's store: in his own experiment, with all of it.
    taken_over = track("a")
    taken_over.observe(measured)
    assert experiment_of(taken_over) == "lab (bob)"
    assert len({t.identity for t in (of_ada, of_bob, taken_over)}) == 3
    again = track("a")
    assert again.identity == taken_over.identity and len(again.run_keys) == len(measured)
    found = newest_parent(MlflowClient(server.uri), search_id)
    assert found is not None and found.info.run_id == taken_over.identity
    # Nothing of hers has changed.
    server.login("ada")
    client = MlflowClient(server.uri)
    parent = client.get_run(of_ada.identity)
    assert parent.data.tags["mlflow.user"] == "ada"
    children = all_runs(client, f"tags.`mlflow.parentRunId` = '{of_ada.identity}'")
    assert {r.data.tags["pmlray.run_key"] for r in children} == {o.run_key for o in measured[:2]}
    assert {r.data.tags["mlflow.user"] for r in children} == {"ada"}
    assert track("a").identity == of_ada.identity
    # With her leave he logs beside her.
    lab = client.get_experiment_by_name("lab")
    assert lab is not None
    server.login("admin")
    users = get_app_client("basic-auth", server.uri)
    users.grant_user_permission("bob", "experiment", lab.experiment_id, "EDIT")
    server.login("bob")
    assert experiment_of(track("c")) == "lab"


def test_a_wrong_password_is_told_as_such(
    server: Server, search: PreparedSearch, tmp_path: Path
) -> None:
    server.login("ada")
    study = StudyInMlflow(search.spec.search_id, "lab", "d" * 12, tmp_path)
    with server.patch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
        with pytest.raises(TrackerAway, match="401"):
            MlflowTracker(server.uri, study, {})
