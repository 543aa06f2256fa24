"""The main job through real Ray Tune, Ray Train, DeepSpeed, Optuna and MLflow."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pmlray.api.status import status_of
from pmlray.api.stores import open_store
from pmlray.backends.mlflow.system_metrics import node_name
from pmlray.backends.store.file_store import FileStore
from pmlray.cli.watch_command import mirrored_standing
from pmlray.study.search.store_follower import FollowedSearch
from tests.integration.conftest import ROOT, SMALL, SMOKE, Finished, end_group, pmlray
from tests.mlflow_runs import all_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RESULT_KEYS = {
    "search_id", "store", "n_observations", "n_failed", "rounds", "law", "heldout_mape", "memft",
    "gpu_seconds", "wall_seconds", "training_share", "report", "tracking_uri",
}  # fmt: skip


def test_result_says_everything_a_machine_needs(smoke: Finished) -> None:
    found = smoke.found
    assert set(found) >= RESULT_KEYS
    assert found["n_observations"] == 12 and found["n_failed"] == 0 and found["rounds"] == 2
    assert found["law"]["status"] in {"CONVERGED", "UNDERDETERMINED", "BOUND_HIT"}
    assert found["law"]["r2"] > 0.9
    assert {pair["method"] for pair in found["memft"]} == {"memft_ot", "memft_sw"}
    seconds = found["gpu_seconds"]
    assert 0 < seconds["law"] + seconds["memft"] == pytest.approx(seconds["spent"])
    assert seconds["spent"] <= seconds["budget"]
    assert Path(found["report"]).is_file()
    # Tune's loggers would load torch into the driver.
    assert not list((smoke.store / "ray").rglob("events.out.tfevents*"))


def test_a_log_hears_of_a_search_all_the_time(smoke: Finished) -> None:
    """Start-up and the report included; the first lines come once Python has loaded."""
    text = "\n".join(line for _, line in smoke.said)
    for words in ("starting Ray", "calibration-000-", ": training", "writing the report"):
        assert words in text, text
    times = [at for at, line in smoke.said if line.startswith(("law:", "memft:"))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 20, text
    # What packs have told is gone with them.
    assert not list((smoke.store / "live").iterdir())
    # Its end is something that a person can act on, before any number of a law.
    assert "word for word" in smoke.found["answer"][0]
    assert "pmlray size --records" in smoke.found["answer"][-1]


def test_every_observation_holds_together(smoke: Finished) -> None:
    observations = FileStore(smoke.store).observations()
    assert len({o.run_key for o in observations}) == len(observations) >= 14
    safe = 0
    for o in observations:
        assert o.delta_loss == pytest.approx(o.base_loss - o.final_loss)
        assert len(o.token_p) == o.supervised_tokens == o.point.seq_len
        assert o.curve[0] == (0, o.base_loss) and o.curve[-1][0] == o.point.train_steps
        assert o.gpu_seconds > 0 and o.peak_memory_bytes > 0 and o.tokens_per_second > 0
        assert o.provenance["versions"]["deepspeed"] and o.provenance["versions"]["ray"]
        wrong = set(o.wrong_tokens)
        assert o.recall.token == pytest.approx(1 - len(wrong) / o.supervised_tokens)
        safe += sum(p > 0.5 for p in o.token_p)
        assert not [i for i, p in enumerate(o.token_p) if p > 0.5 and i in wrong]
        assert (o.generated_match is True) == (o.recall.exact == 1.0)
        assert (smoke.store / "adapters" / o.run_key / "adapter_model.safetensors").is_file()
    assert safe > 0


def test_mlflow_and_optuna_mirror_the_store(smoke: Finished) -> None:
    observations = {o.run_key: o for o in FileStore(smoke.store).observations()}
    client = MlflowClient(smoke.found["tracking_uri"])
    runs = all_runs(client)
    parent = next(r for r in runs if r.data.tags["pmlray.kind"] == "search")
    children = {
        r.data.tags["pmlray.run_key"]: r for r in runs if r.data.tags["pmlray.kind"] != "search"
    }
    assert set(children) == set(observations) and len(runs) == len(children) + 1
    for key, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.metrics["delta_loss"] == pytest.approx(observations[key].delta_loss)
    assert parent.info.status == "FINISHED"
    assert "law/rank_exponent" in parent.data.metrics
    # Of the node where the worker trained.
    assert 0 < parent.data.metrics[f"system/{node_name()}/cpu_utilization_percentage"] <= 100
    assert 0 < parent.data.metrics[f"system/{node_name()}/system_memory_usage_percentage"] < 100
    # Watched from either, it ended with the same counts, seconds and ETA.
    spec, store = open_store(smoke.store)
    of_mlflow = mirrored_standing(spec, parent.data.metrics)
    of_store = status_of(FollowedSearch(spec, store).look(final=True))
    for name in ("phase", "n_done", "n_running", "n_failed", "spent", "left"):
        assert getattr(of_mlflow, name) == getattr(of_store, name), name
    assert of_mlflow.needed == pytest.approx(of_store.needed)
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"search.json", "report.html", "report.json"}
    storage = JournalStorage(JournalFileBackend(str(smoke.store / "optuna.journal")))
    study = optuna.load_study(study_name=smoke.found["search_id"], storage=storage)
    law = {key for key, o in observations.items() if o.phase == "law"}
    assert {t.user_attrs["run_key"] for t in study.trials} == law
    assert all(t.value is not None for t in study.trials)


def test_starting_a_finished_search_again_runs_nothing(smoke: Finished) -> None:
    before = {p: p.stat().st_mtime_ns for p in (smoke.store / "observations").iterdir()}
    # Nobody answers at this address: nothing asks for a cluster.
    command = ("search", str(SMOKE), "--store", str(smoke.store), "--json")
    code, out, err = pmlray(*command, RAY_ADDRESS="127.0.0.1:1")
    assert code == 0, err[-3000:]
    again = json.loads(out)
    assert again["n_observations"] == smoke.found["n_observations"]
    assert again["gpu_seconds"] == smoke.found["gpu_seconds"]
    assert {p: p.stat().st_mtime_ns for p in (smoke.store / "observations").iterdir()} == before


def test_report_and_fit_work_from_the_store_alone(smoke: Finished) -> None:
    code, out, err = pmlray("report", str(smoke.store), "--json")
    assert code == 0, err
    assert json.loads(out)["law"] == smoke.found["law"]
    code, out, err = pmlray("fit", str(smoke.store), "--json")
    assert code == 0, err
    assert json.loads(out)["n_obs"] + json.loads(out)["n_censored"] >= 12


def test_a_killed_search_continues_without_losing_or_repeating(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ["search", str(SMOKE), *SMALL, "--store", str(store), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pmlray", *arguments], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 150
        while not list((store / "observations").glob("*.json")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)
    finally:
        # The driver and every Ray process of it at once, as when the machine loses power.
        end_group(process)
    assert process.returncode == -signal.SIGKILL
    before = {p.name: p.read_bytes() for p in (store / "observations").glob("*.json")}
    assert before
    code, out, err = pmlray(*arguments)
    assert code == 0, err[-3000:]
    after = {p.name: p.read_bytes() for p in (store / "observations").glob("*.json")}
    assert before.items() <= after.items()
    found = json.loads(out)
    assert found["n_observations"] == 4
    client = MlflowClient(found["tracking_uri"])
    runs = all_runs(client)
    kinds = [r.data.tags["pmlray.kind"] for r in runs]
    assert kinds.count("search") == 1 and kinds.count("observation") == len(after)


def test_a_worker_that_dies_before_anything_is_planned_costs_time_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ["search", str(SMOKE), *SMALL, "--set", "memft=null", "--store", str(store)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pmlray", *arguments, "--json"], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        # The worker that takes the first steps holds the leases of the runs whose steps they are.
        held: list[Path] = []
        while not held:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
            leases = (store / "leases").glob("*/1")
            held = [path for path in leases if path.parent.name != "driver"]
        assert not (store / "calibration.json").exists()
        os.kill(json.loads(held[0].read_bytes())["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=150)
    finally:
        end_group(process)
    assert process.returncode == 0, err[-3000:]
    found = json.loads(out)
    assert (found["n_observations"], found["n_failed"]) == (4, 0)
    assert (store / "calibration.json").exists()


def test_a_signal_to_the_whole_group_leaves_with_130_and_no_ray_behind(tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-m", "pmlray", "search", str(SMOKE), *SMALL, "--store", str(store)],
        cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not (store / "ray").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)
        # Ray makes its folder before its trial runs; the interrupt should meet a running one.
        time.sleep(2)
        # As `timeout` and batch systems do it, to everything that the command started as well.
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        end_group(process)
    assert process.returncode == 130, err[-2000:]
    assert "the same command continues" in err
    # Ray's last workers end by themselves, moments after its head.
    end = time.monotonic() + 20
    while left := in_session(process.pid):
        assert time.monotonic() < end, left
        time.sleep(0.2)


def in_session(session_id: int) -> list[str]:
    """Return the command lines of the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The command's name, in parentheses, may hold spaces.
            state, _, _, session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(session) == session_id and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found
