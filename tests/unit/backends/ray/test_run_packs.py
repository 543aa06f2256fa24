"""A study on Ray: no device is asked for before there is a pack for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmlray.backends.ray import run_packs
from pmlray.backends.ray import tune as ray_tune
from pmlray.backends.ray.run_packs import run_packs_on_ray
from pmlray.live_packs import Calibration
from pmlray.types import DesignPoint, Pack, PackResult, PlannedRun

COST = Calibration(((DesignPoint(1, 16, 10), 3),), 1.0, 2.0)
ONLY = Pack(0, (PlannedRun(DesignPoint(1, 16, 10), "sft", 0, 0, "law", "0" * 16),))


class Source:
    """A study of at most one pack, and one of whose steps it wants to know the cost, or none."""

    def __init__(self, said: list[Any], pack: Pack | None, draft: Pack | None = None) -> None:
        self._said, self._pack, self._draft = said, pack, draft

    def spread_over(self, n_devices: int) -> None:
        self._said.append(f"over {n_devices}")

    def to_calibrate(self) -> Pack | None:
        return self._draft

    def calibrated(self, found: Calibration) -> None:
        self._said.append(found)

    def next_pack(self) -> Pack | None:
        self._said.append("next")
        return self._pack

    def absorb(self, result: PackResult) -> None:
        raise AssertionError("nothing ran")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the study, of Ray and of Tune, in this order."""
    heard: list[Any] = []

    class Runner:
        def __init__(self, *_: Any) -> None:
            heard.append("workers")

        def prepare(self, n_out: int) -> None:
            heard.append(f"prepare {n_out}")

        def calibrate(self, pack: Pack) -> Calibration:
            heard.append(pack)
            return COST

        def waited(self, seconds: float = 0.0) -> float:
            return 0.0

        def niceness(self) -> int:
            return 0

        def close(self, seconds: float) -> None:
            heard.append("close")

    monkeypatch.setattr(run_packs, "RayTrainRunner", Runner)
    monkeypatch.setattr(run_packs, "packs_at_once", lambda _: 3)
    monkeypatch.setattr(ray_tune, "tune_packs", lambda *given: heard.append(given[2]))
    return heard


def run(source: Source) -> None:
    run_packs_on_ray(None, source, Path("store"), None, _Lease())  # type: ignore[arg-type]


class _Lease:
    generation = 1


def test_the_worker_of_the_first_pack_starts_before_tune(said: list[Any]) -> None:
    run(Source(said, ONLY))
    assert said == ["workers", "over 3", "next", "prepare 1", ONLY, "close"]


def test_what_steps_cost_is_told_before_a_pack_is_chosen(said: list[Any]) -> None:
    draft = replace(ONLY, calibrates=True)
    run(Source(said, ONLY, draft))
    assert said == ["workers", "over 3", "prepare 1", draft, COST, "next", ONLY, "close"]
    said.clear()
    run(Source(said, None, draft))
    assert said[-2:] == ["next", "close"]


def test_a_study_without_a_pack_starts_neither_worker_nor_tune(said: list[Any]) -> None:
    run(Source(said, None))
    assert said == ["workers", "over 3", "next", "close"]
