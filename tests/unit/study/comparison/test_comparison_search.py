"""A comparison on a known truth: tries are equal, texts are kept apart, and nothing is repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import PreparedSearch, prepare_comparison
from pmlray.errors import RunError, SpecError
from pmlray.live_packs import LivePack
from pmlray.study.comparison.comparison_search import ComparisonSearch
from pmlray.study.comparison.results import compare_methods
from pmlray.study.search.live import with_live
from pmlray.types import Observation, Pack, PackResult
from tests.fakes import MemoryTracker, SyntheticRunner

SMOKE = Path(__file__).parents[4] / "searches" / "comparisons" / "smoke.yaml"
BEST = {"sft": 3e-3, "memft_ot": 1e-2, "memft_rd": 3e-2}
Prepared = tuple[CompareSpec, PreparedSearch]


@pytest.fixture
def prepared() -> Callable[..., Prepared]:
    points = "[{lora_rank: 4, seq_len: 40, train_steps: 60}, {lora_rank: 8, seq_len: 40,"
    points += " train_steps: 30}]"
    rates = ("tuning.learning_rates=[3e-3, 1e-2, 3e-2]", "tuning.widenings=0")
    return lambda *more: prepare_comparison(SMOKE, (f"points={points}", *rates, *more))


class TunedRunner(SyntheticRunner):
    """A runner whose methods differ in the rate that suits them."""

    def run(self, pack: Pack) -> PackResult:
        result = super().run(pack)
        better = tuple(map(_with_recall, result.observations))
        return replace(result, observations=better)


def _with_recall(o: Observation) -> Observation:
    exact = 0.9 if o.learning_rate == BEST[o.method] else 0.2
    return replace(o, recall=replace(o.recall, exact=exact))


def start(
    made: Prepared, folder: Path, tracker: MemoryTracker | None = None
) -> tuple[ComparisonSearch, FileStore]:
    store = FileStore(folder)
    spec, search = made
    comparing = ComparisonSearch(
        spec, search, store, tracker or MemoryTracker(), 2, lambda progress: None
    )
    return comparing, store


def test_every_method_has_the_same_tries_and_its_own_best_rate(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared()
    tracker = MemoryTracker()
    comparing, store = start(made, tmp_path, tracker)
    runner = TunedRunner(store)
    packs = []
    while (pack := comparing.next_pack()) is not None:
        # Budgets in one pack would share their steps, and what they cost.
        assert len({run.point.train_steps for run in pack.runs}) == 1
        # Whatever slows a pack down slows all methods of a text.
        texts = {(run.point, run.sequence_id, run.seed) for run in pack.runs}
        assert {run.method for run in pack.runs} == set(BEST) and len(texts) <= 2
        packs.append(pack)
        comparing.absorb(runner.run(pack))
    runs = [run for pack in packs for run in pack.runs]
    tuning = [run for run in runs if run.sequence_id == 100]
    tries = Counter((run.point, run.method, run.learning_rate) for run in tuning)
    assert len(tries) == 2 * 3 * 3 and set(tries.values()) == {1}
    compared = [run for run in runs if run.sequence_id != 100]
    assert len(compared) == 2 * 3 * 2 and {run.sequence_id for run in compared} == {0, 1}
    assert all(run.learning_rate == BEST[run.method] for run in compared)
    assert len(runs) == made[0].n_runs == len(set(runner.ran))
    assert sorted(tracker.observed) == sorted(runner.ran)
    assert (
        comparing.progress().n_done == made[0].n_runs and comparing.progress().gpu_seconds_left == 0
    )


def test_it_goes_on_after_a_kill_and_repeats_nothing(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared("pack_size=5")
    ran: list[str] = []
    for _ in range(100):
        comparing, store = start(made, tmp_path)
        over = comparing.is_over()
        pack = comparing.next_pack()
        assert over == (pack is None)
        if pack is None:
            break
        assert not start(made, tmp_path)[0].is_over()
        # The driver dies after its pack was stored and before it could absorb it.
        runner = SyntheticRunner(store)
        runner.run(pack)
        ran += runner.ran
    assert len(ran) == len(set(ran)) == made[0].n_runs
    found = compare_methods(made[0], store.observations())
    assert [r.n_runs for r in found.results] == [2] * 6


def test_runs_of_a_pack_that_was_cut_off_count_once(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared("pack_size=5")
    comparing, store = start(made, tmp_path)
    pack = comparing.next_pack()
    assert pack is not None
    SyntheticRunner(store).run(replace(pack, runs=pack.runs[:2]))
    again, store = start(made, tmp_path)
    assert again.next_pack() == pack
    now, spent = again.progress(), sum(o.gpu_seconds for o in store.observations())
    assert (now.n_done, now.n_pending) == (2, 3)
    shown = with_live(now, [LivePack(pack.pack_id, "training", 0.0, 5, 3, 9.0, 99.0, spent + 1.5)])
    assert (shown.n_done, shown.n_pending) == (3, 2)
    assert shown.gpu_seconds_spent == pytest.approx(spent + 1.5)


def test_a_run_that_fails_is_not_tried_again_and_leaves_no_pair(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared("tuning.learning_rates=[1e-2]")
    comparing, store = start(made, tmp_path)
    runner = SyntheticRunner(store, fails=lambda run: run.method == "sft" and run.sequence_id == 1)
    while (pack := comparing.next_pack()) is not None:
        comparing.absorb(runner.run(pack))
    assert len(runner.ran) == len(set(runner.ran)) == 12
    found = compare_methods(made[0], store.observations())
    one_text = [r.differences["token_recall"] for r in found.results if r.method != "sft"]
    assert all(d.n == 1 and d.low is None for d in one_text)
    assert comparing.progress().n_failed == 2


def test_packs_that_keep_failing_end_it(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    comparing, store = start(prepared("pack_size=2"), tmp_path)
    runner = SyntheticRunner(store, fails=lambda run: True)
    with pytest.raises(RunError, match="2 packs failed one after another"):
        while (pack := comparing.next_pack()) is not None:
            comparing.absorb(runner.run(pack))


def test_a_rate_is_never_chosen_on_a_text_that_is_compared_on(
    prepared: Callable[..., Prepared],
) -> None:
    with pytest.raises(SpecError, match=r"tuning.sequences and sequences share \[1\]"):
        prepared("tuning.sequences=[1, 7]")
    with pytest.raises(SpecError, match="same point twice"):
        prepared("points=[{lora_rank: 1, seq_len: 20, train_steps: 5},"
                 " {lora_rank: 1, seq_len: 20, train_steps: 5}]")  # fmt: skip


def test_without_a_pack_size_whole_texts_are_dealt_out_over_devices(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared("sequences=[0, 1, 2, 3, 4]", "tuning.sequences=[100, 101]")
    comparing, store = start(made, tmp_path)
    comparing.spread_over(2)
    runner, out, seen = TunedRunner(store), [], []
    while True:
        while len(out) < 2 and (pack := comparing.next_pack()) is not None:
            out.append(pack)
            seen.append(pack)
            texts = Counter((run.point, run.sequence_id, run.seed) for run in pack.runs)
            assert len(set(texts.values())) == 1
        if not out:
            break
        comparing.absorb(runner.run(out.pop(0)))
    assert len(runner.ran) == len(set(runner.ran)) == made[0].n_runs
    compared = [{run.sequence_id for run in pack.runs} for pack in seen]
    compared = [texts for texts in compared if max(texts) < 100]
    # One pack a device: half of the texts, rounded up, and the others.
    assert [len(texts) for texts in compared] == [3, 2] * 2


def test_devices_train_packs_side_by_side_once_the_rates_are_tuned(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    comparing, store = start(prepared("pack_size=3", "sequences=[0, 1, 2]"), tmp_path)
    comparing.spread_over(2)
    runner = TunedRunner(store)
    first = [comparing.next_pack()]
    while (pack := comparing.next_pack()) is not None:
        first.append(pack)
    # The comparison's rates are those that the tuning runs tell, all of them.
    assert {run.sequence_id for pack in first if pack for run in pack.runs} == {100}
    for pack in first[:-1]:
        assert pack is not None
        comparing.absorb(runner.run(pack))
        assert comparing.next_pack() is None
    assert first[-1] is not None
    comparing.absorb(runner.run(first[-1]))
    side_by_side = [comparing.next_pack(), comparing.next_pack()]
    assert all(p and p.runs[0].sequence_id < 100 for p in side_by_side)
