"""Tune's searcher: it waits while packs are out, and ends when the search does."""

from __future__ import annotations

from pathlib import Path

from pmlray.backends.ray.tune import PackSearcher
from pmlray.backends.store.attempts import AttemptLog
from pmlray.backends.store.file_store import FileStore
from pmlray.errors import RunError
from pmlray.types import DesignPoint, Pack, PackResult, PlannedRun


class Source:
    """A search of two packs, the second of which is there once the first is back."""

    def __init__(self) -> None:
        self.given: list[Pack] = []
        self.back: list[int] = []
        self.lost: list[float] = []
        self.broken = False

    def next_pack(self) -> Pack | None:
        if self.broken:
            raise RunError("packs keep failing")
        if len(self.given) > len(self.back) or len(self.given) == 2:
            return None
        point, key = DesignPoint(1, 16, 10), f"{len(self.given):016x}"
        run = PlannedRun(point, "sft", sequence_id=0, seed=0, phase="law", run_key=key)
        self.given.append(Pack(len(self.given), (run,)))
        return self.given[-1]

    def absorb(self, result: PackResult) -> None:
        self.back.append(result.pack.round)
        self.lost.append(result.times.lost_gpu_seconds)


def first_of(source: Source) -> Pack:
    pack = source.next_pack()
    assert pack is not None
    return pack


def unprepared(_n_out: int) -> None:
    """As where no worker is started ahead."""


def test_it_waits_for_packs_that_are_out_and_then_ends(tmp_path: Path) -> None:
    source = Source()
    prepared: list[int] = []
    searcher = PackSearcher(source, first_of(source), FileStore(tmp_path), prepared.append)
    assert searcher.suggest("a") == {"pack": source.given[0]}
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("b") == {"pack": source.given[1]}
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("b", {"training_seconds": 1.0, "wall_seconds": 2.0})
    assert searcher.suggest("c") == PackSearcher.FINISHED
    assert source.back == [0, 1] and searcher.error is None
    # A worker for each pack that is out, asked for before Tune starts the pack's trial.
    assert prepared == [1, 1]


def test_an_error_of_the_search_ends_it_and_is_kept(tmp_path: Path) -> None:
    source = Source()
    searcher = PackSearcher(source, first_of(source), FileStore(tmp_path), unprepared)
    assert searcher.suggest("a") == {"pack": source.given[0]}
    source.broken = True
    assert searcher.suggest("b") == PackSearcher.FINISHED
    assert isinstance(searcher.error, RunError)


def test_a_pack_that_was_cut_off_ends_the_search_and_has_not_failed(tmp_path: Path) -> None:
    source, store = Source(), FileStore(tmp_path)
    searcher = PackSearcher(source, first_of(source), store, unprepared)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"cut_off": "no worker could start"})
    assert searcher.suggest("b") == PackSearcher.FINISHED
    assert str(searcher.error) == "no worker could start" and isinstance(searcher.error, RunError)
    assert source.back == [] and not store.failures()


def test_what_faults_took_is_counted_once_wherever_the_pack_was_collected(tmp_path: Path) -> None:
    source, store = Source(), FileStore(tmp_path)
    searcher = PackSearcher(source, first_of(source), store, unprepared)
    # The trial collected the pack and told what was lost.
    searcher.suggest("a")
    report = {"training_seconds": 1.0, "wall_seconds": 2.0, "lost_gpu_seconds": 3.0}
    searcher.on_trial_complete("a", report)
    # It died before it could.
    searcher.suggest("b")
    attempts = AttemptLog(store.checkpoints(source.given[1].pack_id))
    attempts.begin(0)
    attempts.note(4.0)
    searcher.on_trial_complete("b", error=True)
    assert source.lost == [3.0, 4.0]
    assert [f.gpu_seconds for f in store.failures()] == [0.0, 4.0]
