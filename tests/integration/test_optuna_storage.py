"""LawSampler on studies that outlive their process and that several workers share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.integration.conftest import ROOT, end_group
from tests.postgres import postgres_server, require_binaries
from tests.unit.backends.optuna.test_sampler import objective, sampler

NAMES = ("lora_rank", "seq_len", "train_steps", "sequence_id", "seed")
Run = tuple[int, ...]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server(require_binaries()) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue("postgres")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def make_study(url: str | None, name: str) -> optuna.Study:
    return optuna.create_study(
        study_name=name, storage=url, sampler=sampler(1e9), direction="maximize",
        load_if_exists=True,
    )  # fmt: skip


def run_of(trial: FrozenTrial) -> Run:
    return tuple(trial.params[name] for name in NAMES)


def start_worker(url: str, name: str, n_trials: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.law_worker", url, name, str(n_trials)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip


def let_work(*workers: subprocess.Popen[str]) -> None:
    """Begin when all are there, so that they ask at the same time."""
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()


def test_a_study_continued_by_new_processes_chooses_as_one_in_memory(url: str, name: str) -> None:
    make_study(url, name)
    for _ in range(2):
        worker = start_worker(url, name, 6)
        try:
            let_work(worker)
            assert worker.wait(timeout=120) == 0
        finally:
            end_group(worker)
    alone = make_study(None, name)
    alone.optimize(objective, n_trials=12)
    continued = make_study(url, name)
    assert [run_of(t) for t in continued.trials] == [run_of(t) for t in alone.trials]
    assert [t.values for t in continued.trials] == [t.values for t in alone.trials]


def test_workers_at_the_same_time_never_choose_the_same_run(url: str, name: str) -> None:
    make_study(url, name)
    workers = [start_worker(url, name, 10) for _ in range(3)]
    try:
        let_work(*workers)
        assert [worker.wait(timeout=200) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            end_group(worker)
    trials = make_study(url, name).trials
    assert len(trials) == 30 and all(t.state == TrialState.COMPLETE for t in trials)
    assert len({run_of(t) for t in trials}) == 30


def test_a_killed_workers_run_counts_as_pending_and_blocks_nobody(url: str, name: str) -> None:
    study = make_study(url, name)
    study.optimize(objective, n_trials=6)
    worker = start_worker(url, name, 0)
    try:
        let_work(worker)
        assert worker.stdout is not None
        number = int(worker.stdout.readline())
    finally:
        end_group(worker)
    study.optimize(objective, n_trials=25)
    left = study.trials[number]
    assert left.state == TrialState.RUNNING
    others = [run_of(t) for t in study.trials if t.number != number]
    # All runs of the grid but its own, none twice: they are 32.
    assert len(set(others)) == len(others) == 31 and run_of(left) not in others
    # The next has no run left to choose, until someone says that the killed one never will finish.
    assert not study.sampler.within_budget(study)  # type: ignore[attr-defined]
