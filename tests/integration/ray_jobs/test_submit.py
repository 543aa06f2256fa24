"""A search submitted to a running cluster that wants a token."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, SMALL, SMOKE, Cluster, pmlray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_search_is_stopped_submitted_again_and_followed_to_its_exit_code(
    token_cluster: Cluster, tmp_path: Path
) -> None:
    store, where = tmp_path / "store", ("--address", token_cluster.dashboard)
    submit = ("submit", str(SMOKE), *SMALL, *where, "--store", str(store), "--json")
    code, out, err = pmlray(*submit, "--no-wait", **token_cluster.environment)
    assert code == 0, err[-2000:]
    # This cluster was started as Ray starts by itself.
    assert "run at niceness 15" in err and "set RAY_worker_niceness=0" in err, err[-2000:]
    search_id = json.loads(out)["search_id"]
    code, out, err = pmlray("stop", search_id, *where, "--json", **token_cluster.environment)
    assert code == 0 and json.loads(out)["status"] == "STOPPED", err[-2000:]
    code, out, err = pmlray(*submit, **token_cluster.environment)
    assert code == 0, err[-3000:]
    assert json.loads(out)["exit_code"] == 0
    assert "warning: this cluster's workers run at niceness 15" in err, err[-2000:]
    job = json.loads(out)["submission_id"]
    assert job == f"{search_id}-2"
    assert len(list((store / "observations").glob("*.json"))) >= 4
    code, out, err = pmlray("status", job, *where, "--json", **token_cluster.environment)
    assert code == 0 and json.loads(out)["status"] == "SUCCEEDED", err[-2000:]
    code, out, _ = pmlray("logs", job, *where, **token_cluster.environment)
    assert code == 0 and "law observations" in out
    code, out, err = pmlray(
        "submit", str(SMOKE), *SMALL, *where, "--submission-id", job, **token_cluster.environment
    )
    assert code == 2 and "leave --submission-id out" in err
    code, out, err = pmlray(
        "report", json.loads((store / "search.json").read_text())["name"], "--from", str(tmp_path)
    )
    assert code == 3 and "is no store of a search" in err


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_ray_job_submit_as_the_guide_writes_it_out(token_cluster: Cluster, tmp_path: Path) -> None:
    """But for the search, the profile and where things lie."""
    guide = (ROOT / "cluster" / "README.md").read_text().replace("\\\n", " ")
    for shown, here in (("job.zip", str(tmp_path / "job.zip")), ("X.yaml", "smoke.yaml"),
                        ("P.yaml", "cpu.yaml")):  # fmt: skip
        guide = guide.replace(shown, here)
    (pack,) = re.findall("^git archive .*$", guide, re.MULTILINE)
    (send,) = re.findall("^ray job submit .*$", guide, re.MULTILINE)
    environment = {**token_cluster.environment, "RAY_API_SERVER_ADDRESS": token_cluster.dashboard}
    search = [*shlex.split(send), *SMALL, "--store", str(tmp_path / "s")]
    for command in (shlex.split(pack), search):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (tmp_path / "job.zip").stat().st_size < 1_000_000
    assert len(list((tmp_path / "s" / "observations").glob("*.json"))) >= 4
    code, out, err = pmlray("status", "X", "--json", **environment)
    assert code == 0 and json.loads(out)["submission_id"] == "X-1", err[-2000:]


def test_the_doctor_finds_workers_that_give_way_to_others(token_cluster: Cluster) -> None:
    """This cluster was started as Ray starts by itself."""
    where = ("--address", token_cluster.dashboard)
    _, out, err = pmlray("doctor", *where, "--json", **token_cluster.environment)
    found = {check["name"]: check for check in json.loads(out)["checks"]}
    assert found["ray cluster"]["state"] == "ok", err[-2000:]
    assert found["ray workers"]["state"] == "warn"
    assert "run at niceness" in found["ray workers"]["detail"]
    assert "RAY_worker_niceness=0" in found["ray workers"]["remedy"]


def test_without_the_token_nothing_runs(token_cluster: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("b" * 64)
    environment = {**token_cluster.environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    code, _, err = pmlray(
        "submit", str(SMOKE), "--address", token_cluster.dashboard, "--store",
        str(tmp_path / "store"), **environment,
    )  # fmt: skip
    assert code == 3
    assert "refused the token" in err and "Traceback" not in err
    assert not (tmp_path / "store").exists()


def test_a_search_that_joins_the_head_is_told_of_the_token_too(
    token_cluster: Cluster, tmp_path: Path
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("b" * 64)
    right = {**token_cluster.environment, "RAY_ADDRESS": token_cluster.head}
    given = {
        "right": right,
        "wrong": {**right, "RAY_AUTH_TOKEN_PATH": str(wrong)},
        "missing": {**right, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")},
        "not sent": {**right, "RAY_AUTH_MODE": "disabled"},
    }
    for name, environment in given.items():
        _, out, err = pmlray("doctor", "--json", **environment)
        found = {check["name"]: check for check in json.loads(out)["checks"]}["ray address"]
        assert (found["state"] == "ok") == (name == "right"), (name, found, err[-2000:])
        if name == "right":
            continue
        assert "RAY_AUTH_TOKEN_PATH" in found["detail"], (name, found)
        store = str(tmp_path / name)
        code, _, err = pmlray("search", str(SMOKE), "--store", store, **environment)
        assert code == 3 and "RAY_AUTH_TOKEN_PATH" in err, (name, err[-2000:])
        assert "Traceback" not in err and not (tmp_path / name / "report").exists()


def test_a_failing_search_returns_its_own_code(token_cluster: Cluster, tmp_path: Path) -> None:
    """Only the cluster can know that it lacks the base model."""
    code, out, err = pmlray(
        "submit", str(SMOKE), "--set", "model={id: smollm2-135m, dtype: bfloat16}",
        "--address", token_cluster.dashboard, "--store", str(tmp_path / "store"), "--json",
        **token_cluster.environment,
    )  # fmt: skip
    assert code == 2, err[-2000:]
    assert json.loads(out)["exit_code"] == 2
    assert "pmlray models pull smollm2-135m" in err
