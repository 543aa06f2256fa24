"""MLflow and its PostgreSQL away, lost and back: nobody waits, and nothing is missing or double."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from mlflow import MlflowClient

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import prepare_search
from pmlray.study.search.replay_table import write_table
from scripts.bench.chaos.servers import MlflowServer, Postgres
from tests.integration.conftest import pmlray
from tests.mlflow_runs import all_runs
from tests.postgres import require_binaries
from tests.searches import exhaustive
from tests.unit.conftest import SEARCH

pytestmark = pytest.mark.slow

OVERRIDES = ("memft=null", "budget={gpu_seconds: 60}", "law.n_bootstrap=20",
             "design.acquisition=sobol")  # fmt: skip
# The service of a laptop that cannot be reached: nobody listens on this port.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, MlflowServer]]:
    require_binaries()
    # PostgreSQL's socket has a short path; pytest's folders are closed to its user.
    folder = Path(tempfile.mkdtemp(prefix="pmlray-pg-", dir="/tmp"))
    folder.chmod(0o755)
    postgres = Postgres(folder / "pg")
    mlflow = None
    try:
        mlflow = MlflowServer(tmp_path_factory.mktemp("mlflow"), postgres.url)
        yield postgres, mlflow
    finally:
        if mlflow is not None:
            mlflow.kill()
        postgres.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def replay(tmp_path: Path) -> list[str]:
    """The arguments of a search that trains nothing."""
    spec, table = tmp_path / "unit.yaml", tmp_path / "table.csv"
    spec.write_text(SEARCH)
    search = prepare_search(spec, OVERRIDES)
    write_table(table, exhaustive(search, tmp_path / "grid").observations(), ["made up"])
    options = [part for override in OVERRIDES for part in ("--set", override)]
    store = str(tmp_path / "store")
    return ["search", str(spec), *options, "--replay", str(table), "--store", store, "--json"]


def mirrored(uri: str) -> tuple[list[str], str, int]:
    """The children's run_keys, the parent's status, and how often the law was told."""
    client = MlflowClient(uri)
    runs = all_runs(client)
    (parent,) = (r for r in runs if r.data.tags["pmlray.kind"] == "search")
    keys = [r.data.tags["pmlray.run_key"] for r in runs if r is not parent]
    told = client.get_metric_history(parent.info.run_id, "law/r2")
    return sorted(keys), parent.info.status, len(told)


@pytest.mark.timeout(900)
def test_a_search_without_its_mlflow_ends_and_sync_sends_everything_once(
    servers: tuple[Postgres, MlflowServer], replay: list[str], tmp_path: Path
) -> None:
    postgres, mlflow = servers
    store = tmp_path / "store"
    # PostgreSQL gone, MLflow up; then both gone.
    postgres.kill()
    code, out, err = pmlray(*replay, "--tracking-uri", mlflow.uri)
    assert code == 0, err
    assert "entries wait for MLflow" in err and f"pmlray sync {store}" in err.replace("\n", " ")
    found = json.loads(out)
    code, _, err = pmlray("sync", str(store), "--tracking-uri", NOWHERE)
    assert code == 3 and "cannot be reached" in err and "Traceback" not in err
    postgres.start()
    keys = sorted(o.run_key for o in FileStore(store).observations())
    assert len(keys) == found["n_observations"]
    for expected in (True, False):
        code, out, err = _until_back("sync", str(store), "--tracking-uri", mlflow.uri, "--json")
        assert code == 0, err
        assert (json.loads(out)["sent"] > 0) == expected
    mirror = mirrored(mlflow.uri)
    n_laws = sum(
        json.loads(path.read_bytes()).get("kind") == "law"
        for path in (store / "mirror").glob("0*.json")
    )
    assert mirror == (keys, "FINISHED", n_laws)
    # A database that was lost, and the study in PostgreSQL, are built from the store alone.
    anew = f"sqlite:///{tmp_path / 'anew.db'}"
    code, _, err = pmlray("sync", str(store), "--optuna-storage", postgres.url)
    assert code == 3 and "a database of its own" in err and "Traceback" not in err
    with psycopg.connect(host=str(postgres.folder), user="postgres", autocommit=True) as server:
        server.execute("CREATE DATABASE optuna")
    url = postgres.url.replace("@/postgres", "@/optuna")
    code, out, err = pmlray("sync", str(store), "--tracking-uri", anew,
                            "--optuna-storage", url, "--json")  # fmt: skip
    assert code == 0, err
    assert mirrored(anew) == mirror
    study = optuna.load_study(study_name=found["search_id"], storage=url)
    assert sorted(t.user_attrs["run_key"] for t in study.trials) == keys
    assert json.loads(out)["optuna_trials"] == len(keys)


def test_a_second_driver_is_refused_by_name(replay: list[str], tmp_path: Path) -> None:
    with FileStore(tmp_path / "store").driver_lock():
        uri = f"sqlite:///{tmp_path / 'ml.db'}"
        code, _, err = pmlray(*replay, "--tracking-uri", uri)
        assert code == 3 and "another search is running" in err and "process" in err
        code, _, err = pmlray("sync", str(tmp_path / "store"), "--tracking-uri", uri)
        assert code == 3


def _until_back(*arguments: str) -> tuple[int, str, str]:
    """A server that has just come back refuses for a moment."""
    end = time.monotonic() + 120
    while True:
        code, out, err = pmlray(*arguments)
        if code == 0 or time.monotonic() > end:
            return code, out, err
