"""Rates and schedules of a comparison: widened alike for all methods, and told at an end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.config.prepared_search import prepare_comparison
from pmlray.study.comparison.comparison_search import ComparisonSearch
from pmlray.study.comparison.results import compare_methods
from pmlray.study.report.comparison_report import comparison_sections, shown_row
from pmlray.types import Observation, PlannedRun
from tests.fakes import SyntheticRunner
from tests.unit.study.comparison.test_comparison_search import (
    SMOKE,
    Prepared,
    prepared,  # noqa: F401
    start,
)


class RisingRunner(SyntheticRunner):
    """A runner that recalls the more the higher the rate, up to `best` of a method."""

    best: Mapping[str, float]

    def _observe(self, run: PlannedRun, round_: int, place: int) -> Observation:
        o = super()._observe(run, round_, place)
        rate = run.learning_rate or 0.0
        off = abs(math.log2(rate / self.best.get(run.method, 1e-2)))
        return replace(o, recall=replace(o.recall, exact=0.9 - 0.05 * off))


def run_to_its_end(comparing: ComparisonSearch, runner: SyntheticRunner) -> list[PlannedRun]:
    runs: list[PlannedRun] = []
    while (pack := comparing.next_pack()) is not None:
        runs += pack.runs
        comparing.absorb(runner.run(pack))
        done = comparing.progress()
        assert done.n_all is not None and done.n_done <= done.n_all
    return runs


def rates_tried(runs: Sequence[PlannedRun]) -> dict[str, list[float]]:
    """The rates that were tried on the tuning text at the first point, by method."""
    tuning = {(r.method, r.learning_rate) for r in runs
              if r.sequence_id == 100 and r.point.lora_rank == 4}  # fmt: skip
    methods = sorted({method for method, _ in tuning})
    return {m: sorted(rate for own, rate in tuning if own == m and rate) for m in methods}


def test_rates_are_widened_for_all_until_each_best_is_inside(
    prepared: Callable[..., Prepared],  # noqa: F811
    tmp_path: Path,
) -> None:
    made = prepared("tuning.learning_rates=[1e-2, 2e-2]", "tuning.widenings=4")
    comparing, store = start(made, tmp_path)
    runner = RisingRunner(store)
    runner.best = {"sft": 2e-2, "memft_ot": 4e-2, "memft_rd": 1e-2}
    runs = run_to_its_end(comparing, runner)
    tried = rates_tried(runs)
    # One beyond 4e-2 shows that it is best, one below 1e-2 that this is; every method has all.
    assert set(map(tuple, tried.values())) == {(5e-3, 1e-2, 2e-2, 4e-2, 8e-2)}
    assert len(runs) == len({run.run_key for run in runs})
    compared = {(r.method, r.learning_rate) for r in runs if r.sequence_id != 100}
    assert compared == set(runner.best.items())
    found = compare_methods(made[0], store.observations())
    assert {(r.learning_rate, r.edge) for r in found.results} == {
        (rate, None) for rate in runner.best.values()
    }
    assert len(found.tried) == 2 * 3 * 5 and comparing.progress().gpu_seconds_left == 0
    # Begun again it knows that it is over, and what it had tried.
    again, _ = start(made, tmp_path)
    assert again.is_over() and again.progress().n_done == again.progress().n_all == len(runs)


def test_a_best_rate_that_stays_at_the_end_is_told(
    prepared: Callable[..., Prepared],  # noqa: F811
    tmp_path: Path,
) -> None:
    made = prepared("tuning.learning_rates=[1e-2, 2e-2]", "tuning.widenings=2")
    comparing, store = start(made, tmp_path)
    runner = RisingRunner(store)
    runner.best = {"sft": 2e-2, "memft_ot": 1.0, "memft_rd": 1e-6}
    tried = rates_tried(run_to_its_end(comparing, runner))
    assert tried["sft"] == [2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2]
    found = compare_methods(made[0], store.observations())
    told = {r.method: (r.learning_rate, r.edge) for r in found.results}
    assert told == {
        "sft": (2e-2, None), "memft_ot": (8e-2, "highest"), "memft_rd": (2.5e-3, "lowest")
    }  # fmt: skip
    said = next(s.text for s in comparison_sections(found, {}) if s.key == "rates")
    assert "MemFT-OT at r4 l40 t60 (0.08, the highest whose runs ended)" in said
    assert "MemFT-RD at r4 l40 t60 (0.0025, the lowest whose runs ended)" in said
    assert "SFT" not in said


def test_a_rate_at_which_runs_fail_ends_the_widening_and_is_not_chosen(
    prepared: Callable[..., Prepared],  # noqa: F811
    tmp_path: Path,
) -> None:
    texts = "tuning.sequences=[100, 101]"
    made = prepared("tuning.learning_rates=[1e-2, 2e-2]", "tuning.widenings=4", texts)
    comparing, store = start(made, tmp_path)

    def fails(run: PlannedRun) -> bool:
        # At 4e-2 one of two texts diverges, and the other recalls most of all.
        rate = run.learning_rate or 0.0
        return rate > 5e-2 or (rate == 4e-2 and run.sequence_id == 101)

    runner = RisingRunner(store, fails=fails)
    runner.best = {"sft": 1.0, "memft_ot": 1.0, "memft_rd": 1.0}
    runs = run_to_its_end(comparing, runner)
    assert rates_tried(runs)["sft"] == [1e-2, 2e-2, 4e-2]
    assert {r.learning_rate for r in runs if r.sequence_id < 100} == {2e-2}
    halved = {(t.n_runs, t.low) for t in compare_methods(made[0], store.observations()).tried
              if t.learning_rate == 4e-2}  # fmt: skip
    assert halved == {(1, 0.0)}


def test_comparisons_of_before_keep_their_ids() -> None:
    former = load_spec(CompareSpec, SMOKE, ("tuning.sequences=[100, 101]",))
    three = load_spec(CompareSpec, SMOKE, ("tuning.sequences=[100, 101, 102]",))
    chosen = former.model_dump(mode="json", exclude_defaults=True)["tuning"]
    assert chosen["sequences"] == [100, 101] and former.compare_id != three.compare_id
    # Computed at dcaf524, where these two texts were the default.
    two_texts = load_spec(
        CompareSpec, SMOKE, ("tuning={learning_rates: [1e-2, 3e-2], sequences: [100, 101]}",)
    )
    assert two_texts.compare_id == "compare_smoke-43a95c22"


def test_a_point_is_compared_under_each_schedule_apart(tmp_path: Path) -> None:
    at = "{lora_rank: 4, seq_len: 40, train_steps: 60"
    points = f"points=[{at}}}, {at}, schedule: linear}}]"
    spec, search = prepare_comparison(SMOKE, (points, "tuning.widenings=0"))
    comparing, store = start((spec, search), tmp_path)
    runs = run_to_its_end(comparing, SyntheticRunner(store))
    assert len(runs) == len({run.run_key for run in runs}) == spec.n_runs
    found = compare_methods(spec, store.observations())
    assert [(r.point.schedule, r.n_runs) for r in found.results] == [
        *[(None, 2)] * 3,
        *[("linear", 2)] * 3,
    ]
    # A run's result does not depend on how its schedule was asked for.
    _, other = prepare_comparison(SMOKE, (f"points=[{at}}}]", "recipe.schedule=linear"))
    own, plain = spec.design_points()[1], spec.design_points()[0]
    asked = search.plan_run(own, "sft", 0, 0, "memft", 1e-2)
    assert asked.run_key == other.plan_run(plain, "sft", 0, 0, "memft", 1e-2).run_key
    shown = [row["point"] for row in map(shown_row, found.results)]
    assert shown[0] == "r4 l40 t60" and shown[3] == "r4 l40 t60 linear"
