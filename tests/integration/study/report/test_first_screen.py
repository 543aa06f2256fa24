"""What a page says first: the answer in words and one figure, and what the page is of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import scipy

from pmlray.study.findings.answer import tried_points
from pmlray.study.findings.memft_words import on_memft, token_gain
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.report.figures.answer import answer_panels, clopper_pearson
from pmlray.study.report.first_screen import first_screen, law_words
from pmlray.study.report.search_report import write_report
from pmlray.types import DesignPoint, Observation, Recall
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.conftest import MakeResult, Page, make_spec

pytestmark = pytest.mark.usefixtures("short_pages")


def run(
    like: Observation, rank: int, length: int, exact: float, text: int = 0, n_records: int = 1
) -> Observation:
    return replace(
        like,
        run_key=f"{rank}-{length}-{text}",
        point=DesignPoint(rank, length, 200),
        supervised_tokens=length,
        sequence_id=text,
        recall=Recall(0.5 + exact / 2, exact, exact, 0),
        provenance={**like.provenance, "n_records": n_records},
    )


def test_the_words_say_recall_certainty_cost_memft_and_what_is_next(result: SearchResult) -> None:
    found = first_screen(result)
    said = dict((*found.parts, *found.beside))
    assert list(said) == ["Recall", "How sure", "Cost", "MemFT", "Next"]
    target = max(law_of(result).targets, key=lambda t: t.point.seq_len)
    size = next(s for s in result.sizes if s.point == target.point)
    rank, low = (math.ceil(x) for x in (size.lora_rank.value, size.lora_rank.low))
    assert f"take rank {rank:,} (90% interval {low:,} to" in said["How sure"]
    assert rank <= 4 * 16  # Four times the largest rank measured.
    forecast = next(f for f in result.recall_result.forecasts if f.point == target.point)
    assert f"would recall {100 * forecast.token.value:.3g}% of the tokens" in said["How sure"]
    assert "of 1,200 gpu_seconds (CPU core seconds) were spent" in said["Cost"]
    assert "by 30 runs. 1 run failed." in said["Cost"]
    assert "plain fine-tuning recalled" in said["MemFT"] and "; MemFT-SW " in said["MemFT"]
    assert found.command == "pmlray size --records FILE.jsonl --model tiny-random-llama"


def test_a_rank_that_no_run_has_tested_is_not_promised(make_result: MakeResult) -> None:
    """A target so long that it takes more than four times the ranks measured."""
    far = make_result(memft=False, design={"targets": {"lora_rank": (16,), "seq_len": (700,)}})
    (size,) = far.sizes
    assert size.lora_rank.value > 4 * 16
    said = law_words(far)
    held = math.floor(size.seq_len.value)
    assert f"By the law, rank 16 holds {held} tokens (90% interval" in said
    assert "700 tokens would take more than four times the ranks measured" in said
    assert f"{math.ceil(size.lora_rank.value):,}" not in said


def test_the_figure_shows_recall_against_rank_with_its_interval(result: SearchResult) -> None:
    like = result.law_observations[0]
    runs = [run(like, r, 64, (r >= 8) * 1.0, text) for r in (2, 4, 8, 16) for text in range(4)]
    runs += [run(like, r, length, 0.0) for r in (2, 16) for length in (32, 96, 128, 192)]
    found = assemble(make_spec(), runs, (), ())
    (panel,) = answer_panels(found)
    rows = next(rows for rows in rows_of(panel.spec()) if len(rows) > 1)
    # Four lengths about the answer's, and every rank at each of them.
    assert {row["seq_len"] for row in rows} == {32, 64, 96, 128}
    of_answer = {row["lora_rank"]: row for row in rows if row["seq_len"] == 64}
    assert {r: row["recalled"] for r, row in of_answer.items()} == {2: 0, 4: 0, 8: 1, 16: 1}
    for rank, row in of_answer.items():
        low, high = scipy.stats.binomtest(4 * (rank >= 8), 4).proportion_ci(0.9, "exact")
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-4)
        assert row["n"] == 4
    named = next(rows for rows in rows_of(panel.spec()) if "name" in rows[0])
    assert [row["name"] for row in named] == ["the answer: rank 8"]
    assert (named[0]["lora_rank"], named[0]["seq_len"]) == (8, 64)


def test_one_text_a_point_shows_tokens_and_claims_no_interval(result: SearchResult) -> None:
    like = result.law_observations[0]
    runs = [run(like, rank, 64, 0.0) for rank in (1, 2, 4)]
    (panel,) = answer_panels(assemble(make_spec(), runs, (), ()))
    rows = next(rows_of(panel.spec()))
    assert [row["recalled"] for row in rows] == [0.5] * 3
    assert all(row["low"] is None and row["high"] is None for row in rows)
    assert "without intervals" in panel.title


def test_of_several_placements_the_figure_compares_their_parameters(
    placed_result: SearchResult,
) -> None:
    (panel,) = answer_panels(placed_result)
    rows = next(rows for rows in rows_of(panel.spec()) if len(rows) > 1)
    tried = {t.point: t for t in tried_points(placed_result.observations)}
    assert {row["placement"] for row in rows} == {"linear", "block", "attention"}
    assert len({row["seq_len"] for row in rows}) == 1
    for row in rows:
        point = DesignPoint(row["lora_rank"], row["seq_len"], 200, row["placement"])
        assert row["at"] == row["n_params"] == tried[point].size


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 7), (30, 30)])
def test_intervals_are_those_of_scipys_test(right: int, n: int) -> None:
    interval = scipy.stats.binomtest(right, n).proportion_ci(0.9, "exact")
    assert clopper_pearson(right, n) == pytest.approx((interval.low, interval.high))


def test_whether_memft_helps_is_said_as_its_interval_has_it(result: SearchResult) -> None:
    def with_gains(*gains: float) -> str:
        pairs = tuple(
            replace(
                result.pairs[0],
                sequence_id=text,
                memft=replace(result.pairs[0].memft, recall=Recall(0.5 + gain, 0, 0, 0)),
                sft=replace(result.pairs[0].sft, recall=Recall(0.5, 0, 0, 0)),
            )
            for text, gain in enumerate(gains)
        )
        (said,) = on_memft(pairs, "texts")
        if len(set(gains)) > 1:
            interval = scipy.stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
            found = token_gain(pairs)
            assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        return said

    assert "it helps there (+10.0 points" in with_gains(0.09, 0.1, 0.11)
    assert "it harms there (−10.0 points" in with_gains(-0.09, -0.1, -0.11)
    assert "whether it helps there is open" in with_gains(-0.2, 0.1, 0.3)
    assert "a single text does not tell" in with_gains(0.4)
    assert "no change in any text, which does not tell how others" in with_gains(0.0, 0.0)
    assert "+25.0 points of tokens in each text, which does not" in with_gains(0.25, 0.25)
    assert on_memft((), "texts") == ()


def test_a_page_says_what_it_is_of(make_result: MakeResult, tmp_path: Path) -> None:
    result = make_result(n_rounds=1, memft=False)
    days = ("2026-11-03T09:00:00+00:00", "2026-11-05T23:59:59+00:00")
    dated = tuple(
        replace(o, provenance={**o.provenance, "finished": days[i % 2]})
        for i, o in enumerate(result.observations)
    )
    page = write_report(replace(result, observations=dated), tmp_path, {}).read_text("utf-8")
    title = page.partition("<title>")[2].partition("</title>")[0]
    for told in ("synthetic", "tiny-random-llama", "random tokens", "mlp", "layer 1"):
        assert told in title
    assert "6 runs of 2026-11-03 to 2026-11-05" in title
    assert "6 runs of 2026-11-03 to 2026-11-05" in Page(page).text


def test_too_few_runs_say_so_first(make_result: MakeResult) -> None:
    early = make_result(n_rounds=1, memft=False)
    found = first_screen(replace(early, snapshots=()))
    said = dict((*found.parts, *found.beside))
    assert said["How sure"].endswith(
        "There is no law yet: 6 runs are measured, too few to fit one."
    )
    assert "Give the search's command again" in said["Next"]
    empty = first_screen(replace(early, observations=(), snapshots=()))
    assert dict(empty.parts)["Recall"] == "No answer yet: nothing is measured."
    assert empty.panels == () and empty.command == ""
