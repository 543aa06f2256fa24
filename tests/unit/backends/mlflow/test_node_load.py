"""A node's load: sampled while packs train, kept in the store, read whatever lies there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pmlray.backends.mlflow import system_metrics
from pmlray.backends.mlflow.node_load import NodeLoad, loads_of, put_load
from pmlray.backends.mlflow.system_metrics import NodeSampler, is_due, node_name, sampled

FIRST = NodeLoad(3, "gpu-7.cluster", ((1000, {"cpu": 5.0}), (2000, {"cpu": 7.5})))


class Counter:
    """A monitor whose values tell how often it looked."""

    def __init__(self) -> None:
        self.looks = 0.0

    def collect_metrics(self) -> None:
        self.looks += 1

    def aggregate_metrics(self) -> dict[str, float]:
        return {"looks": self.looks}

    def clear_metrics(self) -> None:
        pass


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(system_metrics, "node_monitors", lambda: [counter])
    return counter


def test_what_is_kept_is_read_by_round(tmp_path: Path) -> None:
    later = NodeLoad(30, "gpu-7.cluster", FIRST.samples)
    beside = NodeLoad(3, "gpu-8.cluster", FIRST.samples)
    for load in (later, beside, FIRST):
        put_load(tmp_path, load)
    assert list(loads_of(tmp_path, [3, 3])) == [beside, FIRST]
    assert list(loads_of(tmp_path, [30, 31])) == [later]


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"round": 3}',
        json.dumps({"round": 3, "node": "../x", "samples": []}),
        json.dumps({"round": 3, "node": "x", "samples": [[1, {"a/b": 1}]]}),
        json.dumps({"round": 3, "node": "x", "samples": [[1, {"a": math.inf}]]}),
        json.dumps({"round": 3, "node": "x", "samples": [["now", {"a": 1}]]}),
    ],
)  # fmt: skip
def test_what_no_mirror_would_take_is_left_out(content: str, tmp_path: Path) -> None:
    put_load(tmp_path, FIRST)
    (tmp_path / "load" / "003-1.json").write_text(content)
    put_load(tmp_path, FIRST)
    assert list(loads_of(tmp_path, [3])) == [FIRST, FIRST]


def test_a_store_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "load").write_text("in the way")
    put_load(tmp_path, FIRST)
    assert list(loads_of(tmp_path, [3])) == []


def test_each_pack_has_its_own_samples(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "SHORTEST_SECONDS", 0.0)
    sampler = NodeSampler()
    for round_ in (0, 1):
        with sampled(sampler, tmp_path, round_):
            pass
    loads = [load for n in (0, 1) for load in loads_of(tmp_path, [n])]
    assert [(load.round, load.node) for load in loads] == [(0, node_name()), (1, node_name())]
    # The first look, before any pack, counts for none.
    assert [[v["looks"] for _, v in load.samples] for load in loads] == [[2.0], [3.0]]
    monkeypatch.setattr(system_metrics, "SHORTEST_SECONDS", 60.0)
    with sampled(sampler, tmp_path, 2):
        pass
    assert list(loads_of(tmp_path, [2])) == []


def test_a_pack_that_fails_keeps_its_samples(counter: Counter, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lost"), sampled(NodeSampler(), tmp_path, 0):
        raise RuntimeError("lost")
    assert len(list(loads_of(tmp_path, [0]))) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_monitors_that_fail_fail_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[object]:
        raise AttributeError("no network")

    monkeypatch.setattr(system_metrics, "node_monitors", broken)
    monkeypatch.setattr(system_metrics, "ANSWER_SECONDS", 0.01)
    with sampled(NodeSampler(), tmp_path, 0):
        pass
    assert list(loads_of(tmp_path, [0])) == []


def test_a_long_pack_has_a_few_hundred_samples() -> None:
    last, n = 0.0, 0
    for now in range(0, 86_400, 10):
        if is_due(now - last, now):
            last, n = now, n + 1
    assert 300 < n < 600
    assert not is_due(0.5, 0.5) and is_due(math.inf, 0.0)
