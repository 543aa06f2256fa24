"""A pack tells where it stands while it trains, and leaves out what would overspend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.engine import calibrate
from pmlray.engine.calibrate import calibrate_pack
from pmlray.engine.measure import measure_pack
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.engine.scheduling import pack_watch
from pmlray.engine.training.step import TorchStepper
from pmlray.live_packs import LivePack, calibration_of
from pmlray.types import DesignPoint, Pack


@pytest.fixture
def search(search_file: Path, tiny_folder: str) -> PreparedSearch:
    return prepare_search(search_file, ("recipe.stop_loss=0", "evaluate.generate_max_tokens=0"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_watch, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(pack_watch, "LOOKS_SHARE_OF_TIME", math.inf)


def make_pack(search: PreparedSearch, *points: tuple[int, int, int]) -> Pack:
    runs = (search.plan_run(DesignPoint(*p), "sft", 0, 0, "law") for p in points)
    return Pack(0, tuple(runs))


def measure(
    search: PreparedSearch,
    pack: Pack,
    folder: Path,
    tell: Callable[[LivePack], None] = pack_watch.untold,
    checkpoints: Checkpoints | None = None,
) -> FileStore:
    store = FileStore(folder)
    measure_pack(
        search, pack, store, store.adapters, TorchStepper, {}, checkpoints=checkpoints, tell=tell
    )
    return store


@pytest.mark.usefixtures("every_step")
def test_what_a_pack_tells_is_what_it_has_done(search: PreparedSearch, tmp_path: Path) -> None:
    pack, said = make_pack(search, (1, 16, 20), (4, 32, 40)), list[LivePack]()
    store = measure(search, pack, tmp_path, said.append)
    assert [p.stage for p in said[:3]] == [
        "loading tiny-random-llama",
        "running the frozen layers over the texts",
        "scoring the bare base on fresh text",
    ]
    training = [p for p in said if p.runs]
    assert [p.steps for p in training] == sorted(p.steps for p in training)
    first, last = training[0], training[-1]
    assert (first.steps, first.train_steps, first.n_ended) == (2, 60, 0)
    assert (last.steps, last.train_steps, last.n_ended) == (59, 60, 1)
    assert {(r.run_key, r.steps, r.train_steps) for r in last.runs} == {
        (pack.runs[1].run_key, 39, 40)
    }
    measured = {o.run_key: o for o in store.observations()}
    # The loss of a text's last step is that of its curve, where this has a point.
    at_16 = next(p for p in training if p.runs[0].steps == 17)
    for run in at_16.runs:
        assert run.loss == pytest.approx(dict(measured[run.run_key].curve)[16])
    total = sum(o.gpu_seconds for o in measured.values())
    assert 0 < last.gpu_seconds <= total
    assert last.open_gpu_seconds <= last.gpu_seconds
    assert last.gpu_seconds_left is not None and last.seconds_left is not None


@pytest.mark.usefixtures("every_step")
def test_what_would_overspend_is_left_out_and_the_rest_is_what_it_is_alone(
    search: PreparedSearch, tmp_path: Path
) -> None:
    points = (1, 16, 40), (4, 128, 4000), (2, 32, 40)
    pack = make_pack(search, *points)
    limit = 3 * sum(
        o.gpu_seconds
        for o in measure(search, make_pack(search, *points[::2]), tmp_path / "a").observations()
    )
    store = measure(search, replace(pack, gpu_seconds=limit), tmp_path / "b")
    assert [o.point for o in store.observations()] == [pack.runs[0].point, pack.runs[2].point]
    (gone,) = store.failures()
    assert gone.run_key == pack.runs[1].run_key
    assert gone.left_out and not gone.infrastructure and gone.phase == "law"
    spent = gone.gpu_seconds + sum(o.gpu_seconds for o in store.observations())
    assert gone.gpu_seconds > 0 and spent <= 1.1 * limit
    alone = {o.run_key: o for o in FileStore(tmp_path / "a").observations()}
    for o in store.observations():
        assert o.final_loss == pytest.approx(alone[o.run_key].final_loss, rel=1e-4)


@pytest.mark.usefixtures("every_step")
def test_what_was_left_out_is_not_begun_again_after_a_checkpoint(
    search: PreparedSearch, tmp_path: Path
) -> None:
    pack = replace(make_pack(search, (1, 16, 60), (4, 128, 4000)), gpu_seconds=1e-6)
    # All of it is too dear but what has nearly ended: what is left at the end of a pack is kept.
    store = measure(search, pack, tmp_path / "all")
    assert len(store.failures()) == 2
    pack = replace(pack, gpu_seconds=30.0)
    steps = iter(range(1000))
    cut = Checkpoints(tmp_path / "kept", pack.runs, 0.0, lambda: next(steps) >= 30)
    store = FileStore(tmp_path / "store")
    with pytest.raises(AskedToLeave):
        measure(search, pack, store.folder, checkpoints=cut)
    gone = store.failures()
    again = Checkpoints(tmp_path / "kept", pack.runs, 60.0, lambda: False)
    measure(search, pack, store.folder, checkpoints=again)
    assert [f.run_key for f in store.failures()] == [pack.runs[1].run_key]
    assert store.failures()[: len(gone)] == gone
    assert [o.run_key for o in store.observations()] == [pack.runs[0].run_key]


def test_a_family_of_budgets_is_left_out_as_a_whole(
    search: PreparedSearch, tmp_path: Path, every_step: None
) -> None:
    pack = make_pack(search, (1, 16, 30), (2, 128, 1000), (2, 128, 4000))
    store = measure(search, replace(pack, gpu_seconds=20.0), tmp_path)
    assert [o.point.seq_len for o in store.observations()] == [16]
    assert {f.run_key for f in store.failures()} == {run.run_key for run in pack.runs[1:]}


def test_a_few_steps_tell_what_steps_cost(
    search: PreparedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "ENOUGH_SECONDS", 0.0)
    pack = replace(make_pack(search, (1, 16, 100), (4, 32, 100)), calibrates=True)
    calibrate_pack(search, pack, tmp_path, TorchStepper)
    found = calibration_of(tmp_path)
    assert found is not None
    assert found.steps == tuple((run.point, calibrate.LEAST_STEPS) for run in pack.runs)
    assert 0 < found.gpu_seconds < found.spent_gpu_seconds
    # Nothing else of it is kept.
    assert not FileStore(tmp_path).observations() and not FileStore(tmp_path).failures()
    store = measure(search, replace(pack, calibrates=False), tmp_path)
    taken = sum(o.gpu_seconds for o in store.observations()) / 100
    assert found.gpu_seconds / calibrate.LEAST_STEPS == pytest.approx(taken, rel=1.0)


def test_a_run_of_one_step_can_be_calibrated(search: PreparedSearch, tmp_path: Path) -> None:
    calibrate_pack(search, make_pack(search, (1, 16, 1)), tmp_path, TorchStepper)
    found = calibration_of(tmp_path)
    assert found is not None and found.steps == ((DesignPoint(1, 16, 1), 1),)
