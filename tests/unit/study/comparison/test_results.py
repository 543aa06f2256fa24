"""Paired differences against scipy's t test, ranks at equal recall against a hand's reading."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.study.comparison.equal_recall import Cells, EqualRecall, cost_at, equal_recall
from pmlray.study.comparison.recall_levels import seconds_to_recall
from pmlray.study.comparison.results import compare_methods, method_metrics, paired_difference
from pmlray.study.report.comparison_report import describe_comparison, write_comparison
from pmlray.types import DesignPoint, Method, Observation, PlannedRun, Recall
from tests.fakes import observe
from tests.unit.study.conftest import Page

SMOKE = Path(__file__).parents[4] / "searches" / "comparisons" / "smoke.yaml"
RATE = 1e-2


@pytest.fixture(scope="module")
def spec() -> CompareSpec:
    more = ("tuning.learning_rates=[1e-2]", "sequences=[0, 1, 2, 3]", "seeds=[0, 1]")
    return load_spec(CompareSpec, SMOKE, more)


def measured(rank: int, method: Method, sequence_id: int, seed: int, exact: float) -> Observation:
    point = DesignPoint(rank, 40, 60)
    key = f"{hash((rank, method, sequence_id, seed)) & 0xFFFFFFFFFFFFFFFF:016x}"
    run = PlannedRun(point, method, sequence_id, seed, "memft", key, RATE)
    return replace(observe(run, 0, 0, 0.0, 1e-3), recall=Recall(exact, exact / 2, exact, 3))


@pytest.fixture(scope="module")
def observations(spec: CompareSpec) -> list[Observation]:
    rng = np.random.default_rng(0)
    gain = {"sft": 0.0, "memft_ot": 0.05, "memft_rd": 0.2}
    return [
        measured(rank, method, text, seed, 0.1 * rank**0.5 + gain[method] + 0.05 * rng.random())
        for rank in (4, 8)
        for method in spec.all_methods()
        for text in spec.sequences
        for seed in spec.seeds
    ]


def test_means_are_metrics_that_list_the_methods_of_a_figure_together(
    spec: CompareSpec, observations: list[Observation]
) -> None:
    found = compare_methods(spec, observations)
    metrics = method_metrics(found.results)
    names = [name for name in sorted(metrics) if "/exact_recall/" in name]
    assert names == [
        f"r{rank} l40 t60/exact_recall/{method}"
        for rank in (4, 8)
        for method in ("memft_ot", "memft_rd", "sft")
    ]
    own = [o.recall.exact for o in observations if (o.point.lora_rank, o.method) == (4, "memft_rd")]
    assert metrics["r4 l40 t60/exact_recall/memft_rd"] == pytest.approx(np.mean(own))
    # MLflow takes these names.
    assert all(re.fullmatch(r"[\w/. -]+", name) for name in metrics)


def test_differences_are_those_of_the_texts(
    spec: CompareSpec, observations: list[Observation]
) -> None:
    found = compare_methods(spec, observations)
    assert [(r.point.lora_rank, r.method) for r in found.results] == [
        (rank, method) for rank in (4, 8) for method in ("sft", "memft_ot", "memft_rd")
    ]
    for result in found.results:
        own = [o for o in observations if (o.point, o.method) == (result.point, result.method)]
        assert result.n_runs == 8
        assert result.means["exact_recall"] == pytest.approx(np.mean([o.recall.exact for o in own]))
        if result.method == "sft":
            assert result.differences == {}
            continue
        plain = [o for o in observations if (o.point, o.method) == (result.point, "sft")]
        per_text = [
            np.mean([o.recall.exact for o in own if o.sequence_id == text])
            - np.mean([o.recall.exact for o in plain if o.sequence_id == text])
            for text in spec.sequences
        ]
        interval = ttest_1samp(per_text, 0.0).confidence_interval(0.95)
        difference = result.differences["exact_recall"]
        assert difference.n == 4 and difference.mean == pytest.approx(np.mean(per_text))
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
        assert difference.p_value == pytest.approx(ttest_1samp(per_text, 0.0).pvalue)


def test_seeds_of_one_text_are_no_independent_evidence() -> None:
    """Copying every seed changes no interval; runs without a partner change no mean."""
    plain = [measured(4, "sft", t, 0, 0.2) for t in range(4)]
    better = [measured(4, "memft_ot", t, 0, 0.2 + 0.1 * t) for t in range(4)]

    once = paired_difference(plain, better, "exact_recall")
    twice = paired_difference(
        plain + [replace(o, seed=1) for o in plain],
        better + [replace(o, seed=1) for o in better],
        "exact_recall",
    )
    assert once == twice
    alone = measured(4, "memft_ot", 9, 0, 0.0)
    assert paired_difference(plain, [*better, alone], "exact_recall") == once
    assert paired_difference([], better, "exact_recall") is None


def test_no_interval_of_shares_reaches_beyond_what_shares_can_differ_by() -> None:
    """Student's over two texts is as wide as one likes; other figures keep it."""
    plain = [replace(measured(4, "sft", t, 0, 0.5), final_loss=1.0) for t in range(2)]
    better = [replace(measured(4, "memft_ot", t, 0, 0.9 * t), final_loss=1.0 + t) for t in range(2)]
    recall = paired_difference(plain, better, "exact_recall")
    loss = paired_difference(plain, better, "final_loss")
    assert recall is not None and (recall.low, recall.high) == (-1.0, 1.0)
    assert loss is not None and loss.low is not None and loss.low < -1.0
    assert recall.p_value == pytest.approx(ttest_1samp([-0.5, 0.4], 0.0).pvalue)


def test_texts_that_all_differ_alike_tell_no_spread() -> None:
    for more in (0.0, 0.25, 0.3):
        plain = [measured(4, "sft", t, 0, 0.2) for t in range(3)]
        better = [measured(4, "memft_ot", t, 0, 0.2 + more) for t in range(3)]
        found = paired_difference(plain, better, "exact_recall")
        assert found is not None and found.mean == pytest.approx(more) and found.n == 3
        assert found.low is None and found.high is None and found.p_value is None


def test_p_values_are_corrected_for_all_differences_in_exact_recall(
    spec: CompareSpec, observations: list[Observation]
) -> None:
    results = compare_methods(spec, observations).results
    raw = [r.differences["exact_recall"].p_value for r in results if r.method != "sft"]
    assert None not in raw and len(raw) == 4
    # Holm's rule, step by step: the smallest of four is multiplied by four.
    expected, least = {}, 0.0
    for left, p in zip((4, 3, 2, 1), sorted(p for p in raw if p is not None), strict=True):
        least = max(least, min(1.0, left * p))
        expected[p] = least
    found = [(r.differences["exact_recall"].p_value, r.holm_p) for r in results
             if r.method != "sft"]  # fmt: skip
    assert all(holm == pytest.approx(expected[p]) for p, holm in found if p is not None)
    assert [r.holm_p for r in results if r.method == "sft"] == [None, None]


def test_seconds_to_a_level_of_recall_are_read_between_budgets() -> None:
    def run(steps: int, text: int, recall: float) -> Observation:
        found = measured(4, "sft", text, 0, recall)
        return replace(found, point=DesignPoint(4, 40, steps), gpu_seconds=steps / 10)

    recalls = {50: 0.3, 100: 0.7, 200: 0.95}
    cells: dict[tuple[DesignPoint, Method], list[Observation]] = {
        (DesignPoint(4, 40, steps), "sft"): [run(steps, t, exact + t / 50) for t in (0, 1)]
        for steps, exact in recalls.items()
    }
    half, ninety, most = seconds_to_recall(cells)
    assert (half.recall, ninety.recall, most.recall) == (0.5, 0.9, 0.99)
    # Linear in the logarithm of seconds: 0.31 at 5 s and 0.71 at 10 s.
    assert half.gpu_seconds == pytest.approx(5 * 2 ** (0.19 / 0.4))
    assert half.low is not None and half.high is not None
    assert half.low == pytest.approx(5 * 2 ** (0.18 / 0.4)) and half.high > half.gpu_seconds
    assert ninety.gpu_seconds == pytest.approx(10 * 2 ** (0.19 / 0.25))
    assert most.gpu_seconds is None and not most.above
    easy = {cell: [replace(o, recall=replace(o.recall, exact=1.0)) for o in runs]
            for cell, runs in cells.items()}  # fmt: skip
    assert all(s.gpu_seconds is None and s.above for s in seconds_to_recall(easy))
    assert seconds_to_recall(dict([*cells.items()][:1])) == ()


def test_cost_at_equal_recall() -> None:
    assert cost_at([1, 2, 4], [0.1, 0.5, 0.9], 0.7) == pytest.approx(2 * 2**0.5)
    assert cost_at([4, 1, 2], [0.9, 0.1, 0.5], 0.1) == 1
    assert cost_at([1, 2, 4], [0.1, 0.5, 0.9], 0.9) == pytest.approx(4)
    assert cost_at([1, 2, 4], [0.1, 0.5, 0.9], 0.05) == 0
    assert cost_at([1, 2, 4], [0.1, 0.5, 0.9], 0.95) == math.inf


def test_ranks_at_equal_recall_are_read_off_the_means(
    spec: CompareSpec, observations: list[Observation]
) -> None:
    found = compare_methods(spec, observations)
    means = {(r.point.lora_rank, r.method): r.means["exact_recall"] for r in found.results}
    exact = [e for e in found.equal_recall if e.figure == "exact_recall"]
    assert {e.cost for e in exact} == {"lora_rank"} and len(exact) == 4
    for e in exact:
        low, high = means[4, e.method], means[8, e.method]
        assert e.recall == pytest.approx(means[e.sft_point.lora_rank, "sft"])
        if low <= e.recall <= high:
            expected = 4 * 2 ** ((e.recall - low) / (high - low))
            assert e.needed == pytest.approx(expected)
            assert e.ratio == pytest.approx(expected / e.sft_point.lora_rank)
            assert e.low is None or e.low <= e.ratio
            assert e.high is not None and e.high >= e.ratio
        else:
            assert e.needed is None and e.ratio is None


def test_gpu_seconds_at_equal_recall_are_compared_over_budgets() -> None:
    """A method that recalls in each budget what SFT recalls in twice as much, on every text."""

    def run(method: Method, steps: int, text: int, recall: float) -> Observation:
        found = measured(4, method, text, 0, recall)
        return replace(found, point=DesignPoint(4, 40, steps), gpu_seconds=steps / 10)

    cells = {}
    for method, factor in (("sft", 1), ("memft_ot", 2)):
        for steps in (50, 100, 200):
            runs = [run(method, steps, t, 0.1 * math.log(factor * steps) + t / 50) for t in (0, 1)]
            cells[DesignPoint(4, 40, steps), method] = runs
    found = {e.sft_point.train_steps: e for e in equal_recall(cells) if e.figure == "exact_recall"}
    assert {e.cost for e in found.values()} == {"gpu_seconds"}
    for steps in (100, 200):
        e = found[steps]
        assert (e.sft_cost, e.needed) == pytest.approx((steps / 10, steps / 20))
        # That both texts agree does not tell how much others would scatter.
        assert e.ratio == pytest.approx(0.5) and e.low is None and e.high is None
    assert found[50].needed is None


def exact_recall_of(cells: Cells) -> EqualRecall:
    (found,) = (e for e in equal_recall(cells) if e.figure == "exact_recall")
    return found


def test_a_text_missing_in_one_cell_counts_in_none() -> None:
    """Two texts: each is drawn twice by a quarter of the resamples, both by half of them."""
    cells: dict[tuple[DesignPoint, Method], list[Observation]] = {
        (DesignPoint(rank, 40, 60), method): [
            measured(rank, method, text, 0, exact) for text, exact in enumerate(of_texts)
        ]
        for rank, method, of_texts in (
            (1, "sft", (0.4, 0.6)), (1, "memft_ot", (0.2, 0.4)), (4, "memft_ot", (0.6, 0.9)),
        )
    }  # fmt: skip
    of_0, of_1, of_both = 4 ** (0.2 / 0.4), 4 ** (0.2 / 0.5), 4 ** (0.2 / 0.45)
    whole = exact_recall_of(cells)
    assert (whole.recall, whole.ratio) == pytest.approx((0.5, of_both))
    assert (whole.low, whole.high) == pytest.approx((of_1, of_0))
    for cell, runs in cells.items():
        lacking = exact_recall_of({**cells, cell: runs[:1]})
        assert (lacking.recall, lacking.ratio) == pytest.approx((0.4, of_0))
        assert lacking.low is None and lacking.high is None
        apart = [measured(cell[0].lora_rank, cell[1], 7, 0, 0.5)]
        assert not equal_recall({**cells, cell: apart})


def test_a_text_counts_the_same_where_a_seed_is_missing() -> None:
    """Text 0 has the one seed, text 1 both: a mean over the runs would weigh text 1 double."""
    seeds = ((0, 0, 0.2), (1, 0, 0.5), (1, 1, 0.7))
    cells: dict[tuple[DesignPoint, Method], list[Observation]] = {
        (DesignPoint(rank, 40, 60), method): [
            measured(rank, method, text, seed, exact + more) for text, seed, exact in seeds
        ]
        for rank, method, more in ((1, "sft", 0.1), (1, "memft_ot", 0.0), (2, "memft_ot", 0.2))
    }
    found = exact_recall_of(cells)
    assert (found.recall, found.needed) == pytest.approx(((0.3 + 0.7) / 2, 2**0.5))
    # The seed is missing in one cell: text 1 has its other seed there, and its full weight.
    cells[DesignPoint(2, 40, 60), "memft_ot"].pop()
    found = exact_recall_of(cells)
    low, high = (0.2 + 0.6) / 2, (0.4 + 0.7) / 2
    assert found.needed == pytest.approx(2 ** ((0.5 - low) / (high - low)))


@pytest.mark.usefixtures("short_pages")
def test_files_hold_the_comparison(
    spec: CompareSpec, observations: list[Observation], tmp_path: Path
) -> None:
    found = compare_methods(spec, observations)
    facts = {"machine": "<here>", "tracking_uri": "http://me:secret@host"}
    written = write_comparison(found, tmp_path, facts)
    page, table, stored, svg, png = written
    assert [path.name.partition(".")[2] for path in written] == [
        "html",
        "csv",
        "json",
        "svg",
        "png",
    ]
    text = page.read_text()
    assert "MemFT-RD" in text and "&lt;here&gt;" in text and "secret" not in text
    assert svg.read_text().startswith("<svg") and png.read_bytes().startswith(b"\x89PNG")
    read = Page(text)
    assert read.figures() == {"comparison"} == set(read.specs())
    assert "src=" not in text[: text.index("<script")] and 'href="http' not in text
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 6 and float(rows[1]["exact_recall_low"]) < float(rows[1]["exact_recall"])
    assert rows[0]["exact_recall_holm_p"] == "" and 0 <= float(rows[1]["exact_recall_holm_p"]) <= 1
    assert json.loads(stored.read_text())["results"][0]["method"] == "sft"
    lines = describe_comparison(found).splitlines()
    reached = sum(e.ratio is not None for e in found.equal_recall)
    assert reached > 0 and len(lines) == 7 + 1 + reached
