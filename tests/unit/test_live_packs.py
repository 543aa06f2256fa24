"""What packs tell of themselves in a store, and who reads it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.live_packs import (
    CALIBRATION,
    Calibration,
    LivePack,
    LiveRun,
    calibration_of,
    forget_all_live,
    forget_live,
    fresh_packs,
    live_file,
    live_pack,
    live_packs,
    put_calibration,
    put_live,
)
from pmlray.types import DesignPoint

RUNS = (LiveRun("a" * 16, 3, 40, 2.5), LiveRun("b" * 16, 0, 40, math.nan))
PACK = LivePack("pack-001-aaaa", "training", 12.5, 3, 1, 43.0, 120.0, 9.0, 5.0, 16.5, 8.0, RUNS)


def test_what_is_told_last_counts_until_the_pack_is_back(tmp_path: Path) -> None:
    assert live_packs(tmp_path) == ()
    put_live(tmp_path, LivePack("pack-001-aaaa", "loading", 1.0, 3))
    put_live(tmp_path, PACK)
    put_live(tmp_path, LivePack("pack-002-bbbb", "loading", 1.0, 3))
    # NaN equals nothing, itself included.
    assert str(live_packs(tmp_path)[0]) == str(PACK) and PACK.mean_loss == 2.5
    assert [pack.pack_id for pack in live_packs(tmp_path)] == ["pack-001-aaaa", "pack-002-bbbb"]
    forget_live(tmp_path, "pack-001-aaaa")
    forget_live(tmp_path, "pack-001-aaaa")
    assert live_pack(tmp_path, "pack-001-aaaa") is None
    forget_all_live(tmp_path)
    assert live_packs(tmp_path) == ()


@pytest.mark.parametrize(
    ("train_steps", "silent", "fresh"),
    [(120.0, 60.0, True), (120.0, 180.0, False), (0.0, 1800.0, True), (0.0, 7200.0, False),
     (120.0, math.nan, False)],
    ids=["trains", "is lost", "loads", "never loads", "tells nonsense"],
)  # fmt: skip
def test_what_was_told_long_ago_is_not_shown(
    tmp_path: Path, train_steps: float, silent: float, fresh: bool
) -> None:
    put_live(tmp_path, replace(PACK, train_steps=train_steps, time=time.time() - silent))
    assert len(live_packs(tmp_path)) == 1
    assert len(fresh_packs(tmp_path)) == fresh


def test_a_store_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "live").write_text("no folder")
    put_live(tmp_path, PACK)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": 3}', '{"runs": [{"steps": 1}]}'])
def test_what_cannot_be_read_tells_nothing(tmp_path: Path, content: str) -> None:
    for path in (live_file(tmp_path, "pack-001-aaaa"), tmp_path / CALIBRATION):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert live_packs(tmp_path) == () and calibration_of(tmp_path) is None


def test_the_first_calibration_counts(tmp_path: Path) -> None:
    assert calibration_of(tmp_path) is None
    first = Calibration(((DesignPoint(1, 16, 40), 3),), 1.5, 2.0)
    put_calibration(tmp_path, first)
    put_calibration(tmp_path, Calibration(((DesignPoint(1, 16, 40), 3),), 9.0, 9.0))
    assert calibration_of(tmp_path) == first
