"""Submitting to a cluster and looking at its jobs, through Ray's own client."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.config import load_search
from pmlray.config.bases.models import TINY, loadable_name
from pmlray.config.prepared_search import prepare_search
from pmlray.errors import PmlrayError, RunError, SpecError
from tests.jobs_api import FakeCluster, running
from tests.starts import save_start

runner = CliRunner()
CLUSTER = Path(__file__).parents[3] / "cluster"
FACTS = "".join(f'{{"query": "{n}", "target": "{"b" * 20}"}}\n' for n in range(8))


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with running(FakeCluster()) as found:
        yield found


def run_json(*arguments: str) -> dict:
    result = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(kind: type[PmlrayError], *arguments: str) -> str:
    """The message of a command that ends with an error of this kind."""
    error = runner.invoke(app, arguments).exception
    assert isinstance(error, kind), error
    return str(error)


def submit(cluster: FakeCluster, spec: Path, *arguments: str) -> dict:
    return run_json("submit", str(spec), "--address", cluster.address, "--no-wait", *arguments)


def test_a_submitted_search_takes_its_code_and_files_along(
    cluster: FakeCluster, search_file: Path
) -> None:
    folder = search_file.parent
    (folder / "data").mkdir()
    (folder / "data" / "facts.jsonl").write_text(FACTS)
    profile = folder / "gpu.yaml"
    profile.write_text("gpus_per_pack: 1\nstorage: /mnt/shared/pmlray\n")
    override = "task={kind: records, records: data/facts.jsonl}"
    found = submit(cluster, search_file, "--set", override, "--profile", str(profile))
    search_id = load_search(search_file, [override]).search_id
    assert found["search_id"] == search_id and found["submission_id"] == f"{search_id}-1"
    job = cluster.jobs[f"{search_id}-1"]
    assert job["entrypoint"] == "python -m pmlray search search.yaml --profile profile.yaml"
    shipped = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert job["runtime_env"]["env_vars"] == shipped["env_vars"]
    [package] = cluster.packages
    assert len(package) < 1_000_000
    with zipfile.ZipFile(io.BytesIO(package)) as uploaded:
        names = set(uploaded.namelist())
        sent = yaml.safe_load(uploaded.read("search.yaml"))
    assert {"pmlray/__main__.py", "data/facts.jsonl", "profile.yaml"} <= names
    assert not any("__pycache__" in name for name in names)
    assert sent["task"]["records"] == "data/facts.jsonl"


@pytest.mark.parametrize("place", ["first", "pmlray/first"])
def test_the_adapter_to_begin_with_goes_along(
    cluster: FakeCluster, search_file: Path, tmp_path: Path, place: str
) -> None:
    """There its base is found by the search's name for it: the config's may be a folder of here."""
    here = save_start(search_file.parent / place, base_model_name_or_path=loadable_name(TINY))
    (here / "optimizer.pt").write_bytes(bytes(1000))
    own = ("probe=null", f"adapter.from_adapter={place}", "space.lora_rank=[2,4]",
           "design.n_initial=1")  # fmt: skip
    submit(cluster, search_file, *(x for override in own for x in ("--set", override)))
    with zipfile.ZipFile(io.BytesIO(cluster.packages[0])) as uploaded:
        there = yaml.safe_load(uploaded.read("search.yaml"))["adapter"]["from_adapter"]
        names = {n for n in uploaded.namelist() if n.startswith(f"{there}/")}
        uploaded.extractall(tmp_path / "job")
    files = {"adapter_config.json", "adapter_model.safetensors"}
    assert {name.removeprefix(f"{there}/") for name in names} == files
    config = json.loads((tmp_path / "job" / there / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == TINY
    sent, kept = prepare_search(tmp_path / "job" / "search.yaml"), prepare_search(search_file, own)
    # The same runs, wherever they are measured.
    keys = [
        [search.plan_run(p, "sft", 0, 0, "law").run_key for p in search.spec.space.points()]
        for search in (sent, kept)
    ]
    assert keys[0] == keys[1] and len(keys[0]) == 8
    assert (sent.spec.search_id == kept.spec.search_id) == (place == "first")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_files_make_way_for_what_pmlray_sends_itself(
    cluster: FakeCluster, search_file: Path, kind: str
) -> None:
    """And keep the suffix by which they are read."""
    folder = search_file.parent / "pmlray"
    folder.mkdir()
    rows = [f"{n},{'b' * 20}" for n in range(8)]
    content = FACTS if kind == "jsonl" else "\n".join(["query,target", *rows])
    (folder / f"facts.{kind}").write_text(content)
    submit(cluster, search_file, "--set", f"task={{kind: records, records: pmlray/facts.{kind}}}")
    with zipfile.ZipFile(io.BytesIO(cluster.packages[0])) as uploaded:
        place = yaml.safe_load(uploaded.read("search.yaml"))["task"]["records"]
        assert place == ("files/records" if kind == "jsonl" else f"files/records.{kind}")
        assert uploaded.read(place).decode() == content


def test_no_longer_following_leaves_the_job_alone(
    cluster: FakeCluster, search_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pmlray.backends.ray.jobs.RayJobs.follow", leave)
    done = runner.invoke(app, ["submit", str(search_file), "--address", cluster.address])
    assert done.exit_code == 130
    # The job that asks for the workers' niceness may still be there.
    (job,) = (job for job, made in list(cluster.jobs.items()) if made["metadata"])
    assert f"pmlray stop {job}" in done.stderr and cluster.jobs[job]["status"] != "STOPPED"


def test_the_next_submission_of_a_search_gets_the_next_number(
    cluster: FakeCluster, search_file: Path
) -> None:
    first, second = (submit(cluster, search_file)["submission_id"] for _ in range(2))
    assert first.endswith("-1") and second == f"{first[:-1]}2"


@pytest.mark.parametrize(("niceness", "warned"), [(0, False), (15, True), (None, False)])
@pytest.mark.parametrize("waits", [True, False])
def test_a_cluster_whose_workers_give_way_is_told_of_after_the_job_was_taken(
    search_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    niceness: int | None,
    warned: bool,
    waits: bool,
) -> None:
    monkeypatch.setattr("pmlray.backends.ray.jobs.RayJobs.follow", lambda *_: 5)
    more = () if waits else ("--no-wait",)
    with running(FakeCluster(niceness=niceness)) as cluster:
        command = ["submit", str(search_file), "--address", cluster.address, "--json", *more]
        done = runner.invoke(app, command, catch_exceptions=False)
        assert done.exit_code == (5 if waits else 0)
        # The search is the first that the cluster hears of.
        assert next(iter(cluster.jobs)) == json.loads(done.stdout)["submission_id"]
    assert ("run at niceness 15" in done.stderr) is warned
    assert ("set RAY_worker_niceness=0" in done.stderr) is warned


def test_a_cluster_that_is_gone_once_it_has_the_job_fails_no_submission(
    cluster: FakeCluster, search_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient.get_job_info", gone)
    assert submit(cluster, search_file)["exit_code"] == 0


def test_a_submission_id_is_taken_once(cluster: FakeCluster, search_file: Path) -> None:
    submit(cluster, search_file, "--submission-id", "mine")
    message = refused(SpecError, "submit", str(search_file), "--address", cluster.address,
                      "--submission-id", "mine")  # fmt: skip
    assert "mine was used" in message and "leave --submission-id out" in message


def test_a_cluster_that_is_just_starting_is_waited_for(
    cluster: FakeCluster, search_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmlray.backends.ray.jobs.RETRY_SECONDS", 0)
    cluster.busy = 2
    assert submit(cluster, search_file)["submission_id"] in cluster.jobs
    monkeypatch.setattr("pmlray.backends.ray.jobs.AGENT_SECONDS", 0)
    cluster.busy = 1
    message = refused(RunError, "submit", str(search_file), "--address", cluster.address)
    assert "did not take the job" in message and "try again later" in message


def test_another_ray_on_the_cluster_is_refused(search_file: Path) -> None:
    with running(FakeCluster(ray_version="2.9.3")) as old:
        message = refused(RunError, "submit", str(search_file), "--address", old.address)
    assert "runs Ray 2.9.3" in message and "cluster/Dockerfile" in message
    assert not old.packages


def test_without_the_token_nobody_gets_in() -> None:
    with running(FakeCluster(token="a" * 64)) as closed:
        message = refused(RunError, "list", "--address", closed.address)
    assert "RAY_AUTH_MODE=token" in message and "RAY_AUTH_TOKEN_PATH" in message


def test_a_cluster_that_is_away_is_said_to_be() -> None:
    with running(FakeCluster()) as gone:
        pass
    message = refused(RunError, "status", "--address", gone.address)
    assert gone.address in message and "forwarded" in message


def test_jobs_are_found_by_id_by_search_or_as_the_newest(cluster: FakeCluster) -> None:
    cluster.add("a-1", 1000, "a", status="FAILED", end_time=1_060_000, driver_exit_code=3)
    cluster.add("a-2", 2000, "a")
    cluster.add("b-1", 1500, "b")
    cluster.add("other", 3000)
    where = ("--address", cluster.address)
    order = [job["submission_id"] for job in run_json("list", *where)["jobs"]]
    assert order == ["other", "a-2", "b-1", "a-1"]
    assert run_json("status", *where)["submission_id"] == "a-2"
    assert run_json("status", "b", *where)["submission_id"] == "b-1"
    failed = run_json("status", "a-1", *where)
    assert (failed["status"], failed["seconds"], failed["exit_code"]) == ("FAILED", 60.0, 3)
    shown = runner.invoke(app, ["logs", "a", *where])
    assert shown.stdout == "log of a-2\n"
    assert run_json("stop", "b-1", *where)["status"] == "STOPPED"
    assert cluster.jobs["a-2"]["status"] == "RUNNING"
    assert "pmlray list" in refused(SpecError, "status", "c", *where)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://head.example:8265", "clear text"),
        ("http://10.0.0.5:8265", "clear text"),
        ("ray://127.0.0.1:10001", "no address"),
        ("127.0.0.1:8265", "no address"),
        ("https://me:secret@head.example", "leave the password out"),
    ],
)
def test_an_address_that_would_leak_the_token_or_is_none_is_refused(
    address: str, said: str, search_file: Path
) -> None:
    for command in (["list"], ["status"], ["logs"], ["stop"], ["submit", str(search_file)]):
        message = refused(SpecError, *command, "--address", address)
        assert said in message and "secret" not in message
