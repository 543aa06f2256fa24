"""A study is heard of every second while its packs train, and its tracker now and then."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pmlray.api import follower
from pmlray.api.follower import Follower
from pmlray.live_packs import LivePack, LiveRun, live_file, put_live
from pmlray.study.search.progress import Progress
from pmlray.types import DesignPoint, PlannedRun
from tests.fakes import MemoryTracker

RUN = PlannedRun(DesignPoint(1, 16, 40), "sft", 0, 0, "law", "a" * 16)
AT = Progress("law", 2, 1, 0, 10.0, 90.0, None, running=(RUN,))


def live(steps: int, at: float | None = None) -> LivePack:
    told = time.time() if at is None else at
    of_run = LiveRun(RUN.run_key, steps, 40, 3.0)
    return LivePack("pack-000-a", "training", told, 1, 0, steps, 40.0, 1.0 * steps, runs=(of_run,))


class Heard:
    """What was announced; `until` waits for it."""

    def __init__(self) -> None:
        self.said: list[Progress] = []
        self._news = threading.Condition()

    def __call__(self, progress: Progress) -> None:
        with self._news:
            self.said.append(progress)
            self._news.notify_all()

    def until(self, spent: float) -> Progress:
        with self._news:
            assert self._news.wait_for(
                lambda: bool(self.said) and self.said[-1].gpu_seconds_spent == spent, timeout=30
            )
            return self.said[-1]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(follower, "TRACKED_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_a_pack_s_progress_is_announced_without_anybody_s_doing(tmp_path: Path) -> None:
    heard, tracker = Heard(), MemoryTracker()
    # What an earlier driver's pack has told is none of this one's.
    put_live(tmp_path, live(30))
    with Follower(tmp_path, heard, tracker) as follow:
        assert not live_file(tmp_path, "pack-000-a").exists()
        follow.stage("starting Ray")
        follow(AT)
        assert (heard.said[-1].stage, heard.said[-1].packs) == ("starting Ray", ())
        put_live(tmp_path, live(10))
        shown = heard.until(20.0)
        assert shown.stage == "" and [p.steps for p in shown.packs] == [10]
        put_live(tmp_path, live(20))
        heard.until(30.0)
        # Silent for minutes: its worker is gone.
        put_live(tmp_path, live(20, at=time.time() - 1000))
        heard.until(10.0)
    n = len(heard.said)
    assert tracker.lived == [{RUN.run_key: 10}, {RUN.run_key: 20}]
    assert tracker.stood["live/steps"] == 20.0
    time.sleep(0.05)
    assert len(heard.said) == n


@pytest.mark.usefixtures("quick")
def test_a_tracker_is_told_only_of_what_got_further(tmp_path: Path) -> None:
    heard, tracker = Heard(), MemoryTracker()
    with Follower(tmp_path, heard, tracker) as follow:
        follow(AT)
        put_live(tmp_path, live(20))
        heard.until(30.0)
        for _ in range(5):
            follow(AT)
    assert tracker.lived == [{RUN.run_key: 20}]
