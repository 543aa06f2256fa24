"""RAY_ADDRESS and --address that no search can use: told by doctor and by what would train."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pmlray.cli import app
from pmlray.errors import ClusterAway, SpecError
from tests.integration.conftest import free_port

runner = CliRunner()
COMPARISON = Path(__file__).parents[3] / "searches" / "comparisons" / "smoke.yaml"
SECONDS = 10.0


def own_clock() -> float:
    """Seconds that passed, without those in which this thread waited for a core that others had."""
    waited = Path("/proc/thread-self/schedstat").read_text().split()[1]
    return time.monotonic() - int(waited) / 1e9


def asked(command: str, search_file: Path, tmp_path: Path, *options: str) -> Result:
    """What would train, in a store of its own."""
    store = ["--store", str(tmp_path / "store")]
    if command == "size":
        records = tmp_path / "facts.jsonl"
        rows = ({"query": f"{i}:", "target": f"{i} is {i * i}"} for i in range(40))
        records.write_text("\n".join(map(json.dumps, rows)))
        given = ["--records", str(records), "--model", "tiny-random-llama",
                 "--out", str(tmp_path / "out")]  # fmt: skip
    else:
        given = [str(search_file if command == "search" else COMPARISON), *store]
    return runner.invoke(app, [command, *given, *options])


@pytest.mark.parametrize("command", ["search", "compare", "size"])
def test_a_dead_ray_is_told_at_once_and_no_report_is_drawn(
    command: str, search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = own_clock()
    done = asked(command, search_file, tmp_path)
    assert isinstance(done.exception, ClusterAway), done.exception
    assert own_clock() - began < SECONDS
    said = str(done.exception)
    assert address in said and "RAY_ADDRESS" in said and "--address local" in said
    assert not list(tmp_path.rglob("report"))


@pytest.mark.parametrize("command", ["search", "compare", "size"])
def test_the_address_of_the_jobs_api_is_refused_before_anything_is_made(
    command: str, search_file: Path, tmp_path: Path
) -> None:
    done = asked(command, search_file, tmp_path, "--address", "http://127.0.0.1:8265")
    assert isinstance(done.exception, SpecError), done.exception
    said = str(done.exception)
    assert "--address is http://127.0.0.1:8265" in said and "pmlray submit" in said
    assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["dead", "http", "local"])
def test_doctor_looks_at_the_address(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_STORE", str(tmp_path))
    for name in ("RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    dead = f"127.0.0.1:{free_port()}"
    address = {"dead": dead, "http": "http://127.0.0.1:8265", "local": "local"}[named]
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = own_clock()
    done = runner.invoke(app, ["doctor", "--json"])
    assert own_clock() - began < SECONDS
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    said = found["ray address"]
    assert said["state"] == ("ok" if named == "local" else "fail")
    assert done.exit_code == (0 if named == "local" else 2)
    if named == "dead":
        assert dead in said["detail"] and "--address local" in said["detail"]
    if named == "http":
        assert "RAY_ADDRESS is http" in said["detail"] and "pmlray submit" in said["detail"]
