"""`pmlray doctor`: each line is ok, warn or fail, and what is not ok says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pmlray.api.environment import checks
from pmlray.cli import app
from pmlray.config.bases.models import resolve_model
from tests.integration.conftest import free_port
from tests.jobs_api import FakeCluster, running

runner = CliRunner()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE",
                 "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMLRAY_STORE", str(tmp_path / "stores"))


def examined(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = runner.invoke(app, ["doctor", *options, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["healthy"] == (done.exit_code == 0)
    return done.exit_code, {check["name"]: check for check in found["checks"]}


def test_a_healthy_machine_passes_and_every_topic_is_looked_at(tmp_path: Path) -> None:
    code, found = examined("--model", "tiny-random-llama")
    assert code == 0
    assert {"python", "ray", "torch", "requirements.lock", "device", "memory", "store",
            "cache", "model tiny-random-llama", "ray token", "ray cluster",
            "mlflow"} <= found.keys()  # fmt: skip
    assert all(check["remedy"] for check in found.values() if check["state"] == "warn")
    assert str(tmp_path / "stores") in found["store"]["detail"]
    assert not (tmp_path / "stores").exists()


def test_what_must_be_mended_fails_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    code, found = examined(
        *("--model", "smollm2-135m", "--store", str(in_the_way / "stores")),
        *("--address", "http://192.0.2.1:8265"),
    )
    assert code == 2
    said = {name: f"{c['detail']} {c['remedy']}" for name, c in found.items()
            if c["state"] == "fail"}  # fmt: skip
    assert said.keys() == {"model smollm2-135m", "ray token", "mlflow", "store", "ray cluster"}
    assert "pmlray models pull smollm2-135m" in said["model smollm2-135m"]
    assert "RAY_AUTH_TOKEN_PATH" in said["ray token"]
    assert "cannot be asked" in said["mlflow"] and "secret" not in said["mlflow"]
    assert "choose another folder" in said["store"]
    assert "forward the port" in said["ray cluster"]


@pytest.mark.parametrize(
    ("niceness", "state", "said"), [(0, "ok", ""), (15, "warn", "RAY_worker_niceness=0"),
                                    (None, "warn", "pmlray logs")],
)  # fmt: skip
def test_a_cluster_whose_workers_give_way_to_others_is_named(
    niceness: int | None, state: str, said: str
) -> None:
    with running(FakeCluster(niceness=niceness)) as cluster:
        _, found = examined("--address", cluster.address)
        assert found["ray cluster"]["state"] == "ok"
        assert found["ray workers"]["state"] == state
        assert said in found["ray workers"]["remedy"]
        # The job that asked is no part of what a user has submitted, unless its log is wanted.
        assert len(cluster.jobs) == (niceness is None)


def test_other_versions_than_the_tested_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements.lock").write_text("# pins\nnumpy==1.0.0\nnot-here==1.0\n")
    monkeypatch.setattr(checks, "SOURCE", tmp_path / "pmlray")
    found = checks.locked_versions()
    assert found.state == "warn" and "(1.0.0)" in found.detail and "not-here" not in found.detail
    assert "pip install --no-deps -r" in found.remedy and "requirements.lock" in found.remedy


def test_packages_are_held_to_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["typer>=0.16", "numpy<1", "not-here>=1", "pmlray[draw]; extra == 'train'",
                "typer[all]>=0.16; extra == 'train'", "not-there>=1; extra == 'train'",
                'nor-drawn>=1; extra == "draw"', "nor-there>=1; extra == 'dev'"]  # fmt: skip
    monkeypatch.setattr(checks, "requires", lambda _name: declared)
    listed = list(checks.packages())
    found = {check.name: check for check in listed}
    assert {name: check.state for name, check in found.items()} == {
        "typer": "ok", "numpy": "fail", "not-here": "fail", "not-there": "warn",
        "nor-drawn": "warn",
    }  # fmt: skip
    assert len(listed) == len(found)
    assert "<1 is needed" in found["numpy"].detail
    assert found["not-here"].remedy == "run: pip install -e . in your clone of pmlray"
    assert "'.[train]'" in found["not-there"].remedy
    assert "'.[draw]'" in found["nor-drawn"].remedy


def test_a_cpu_that_does_not_multiply_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for has, ending in ((True, "the CPU"), (False, "which computes bases of bfloat16 in float32")):
        known = {"avx512_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert checks.device().detail.endswith(ending)


def test_a_container_has_no_more_memory_than_its_limit_leaves(tmp_path: Path) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert checks.available_bytes(meminfo, group) is None
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    group.mkdir()
    assert checks.available_bytes(meminfo, group) == 8000 * 1024
    (group / "memory.current").write_text("3000000\n")
    for limit, free in (("max", 8000 * 1024), ("99999999", 8000 * 1024), ("5000000", 2000000)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert checks.available_bytes(meminfo, group) == free


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MIN_FREE_GIB", 1e9)
    monkeypatch.setattr(checks, "MIN_MEMORY_GIB", 1e9)
    for check in (checks.storage("store", tmp_path), checks.memory()):
        assert check.state == "warn" and check.remedy in check.line()


def test_a_token_that_others_can_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert checks.ray_token().remedy == f"run: chmod 600 {token}"
    token.chmod(0o600)
    assert checks.ray_token().state == "ok"


def test_a_folder_is_a_base_model_too() -> None:
    folder = str(resolve_model("tiny-random-llama", None).folder)
    (check,) = checks.base_model(folder, None)
    assert check.state == "ok" and check.detail == folder
