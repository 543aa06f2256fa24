"""The report's section on recall against the law that it draws."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pmlray.law import RecallLaw, fit_recall
from pmlray.study.findings.recall_rule import ANSWER
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.recall import recall_panels, recall_tables, recall_text
from pmlray.study.report.search_report import report_json
from pmlray.types import Observation
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.conftest import MakeResult


@pytest.fixture(scope="module")
def result(make_result: MakeResult) -> SearchResult:
    return make_result(n_rounds=3)


def law(result: SearchResult) -> RecallLaw:
    assert result.recall is not None
    return result.recall


def test_points_are_the_runs_and_curves_the_law(result: SearchResult) -> None:
    token, exact = recall_panels(result)
    for panel, name in ((token, "token_recall"), (exact, "exact_recall")):
        curves, points = rows_of(panel.spec())
        expected = {(round(o.final_loss, 5), o.recall.token) for o in result.law_observations}
        if name == "token_recall":
            assert {(row["final_loss"], row[name]) for row in points} == expected
        assert {row["seq_len"] for row in curves} == {
            o.point.seq_len for o in result.observations if o.phase == "law"
        }
        row = curves[17]
        predicted = law(result).predict(row["final_loss"], row["seq_len"])
        share = predicted.token if name == "token_recall" else predicted.exact
        assert row[name] == pytest.approx(float(share), abs=1e-3)


def test_a_run_whose_loss_is_zero_is_drawn_on_the_logarithmic_axis(result: SearchResult) -> None:
    first, *others = result.observations
    found = replace(result, observations=(replace(first, final_loss=0.0), *others))
    curves, points = rows_of(recall_panels(found)[0].spec())
    losses = [row["final_loss"] for row in (*curves, *points)]
    assert min(losses) == 1e-5 and len(points) == len(result.law_observations)


def test_records_of_one_length_share_a_curve(result: SearchResult) -> None:
    book = tuple(
        replace(o, task="phonebook", provenance={"n_records": o.supervised_tokens // 8})
        for o in result.observations
    )
    found = replace(result, observations=book)
    assert law(found).tokens_per_record == 8.0
    curves = next(rows_of(recall_panels(found)[0].spec()))
    assert "seq_len" not in curves[0]
    _, losses = recall_tables(found)
    assert [row[0] for row in losses.rows] == [8, 8, 8]


def test_tables_say_what_a_run_would_recall_and_what_it_takes(result: SearchResult) -> None:
    forecasts, losses = recall_tables(result)
    found = result.recall_result.forecasts
    assert [f.point for f in found] == [t.point for t in law_of(result).targets]
    column = forecasts.columns.index("exact")
    assert [row[column] for row in forecasts.rows] == [f.exact.value for f in found]
    for tokens, wanted, loss in losses.rows:
        assert isinstance(tokens, int) and isinstance(loss, float)
        assert float(law(result).predict(loss, tokens).exact) == pytest.approx(wanted, abs=1e-6)


def test_text_says_what_happens_at_one_half(result: SearchResult) -> None:
    text = recall_text(result.recall_result, ANSWER)
    assert "Every token that holds more than half of the probability is recalled." in text
    share = result.recall_result.transition
    assert share is not None and share.stubborn_recalled is not None
    assert f"Of the others, {100 * share.stubborn_recalled:.3g}% are recalled all the same" in text
    first = result.law_observations[0]
    broken = replace(first, token_p=(0.9,) * len(first.token_p), wrong_tokens=(0, 1))
    text = recall_text(replace(result, observations=(broken,)).recall_result, ANSWER)
    assert text.startswith("Exact recall counts the answer. WRONG MEASUREMENT: 2 tokens")
    assert "No law of recall: recall needs at least 5 runs and there are 1" in text


def test_json_holds_the_law_the_transition_and_the_targets(result: SearchResult) -> None:
    stored = json.loads(json.dumps(report_json(result, {})["recall"], allow_nan=False))
    fitted = fit_recall(result.observations)
    assert stored["law"]["half_loss"] == pytest.approx(fitted.half_loss)
    assert stored["transition"]["sure_recalled"] == 1.0
    assert len(stored["transition"]["runs"]) == len(result.law_observations)
    assert len(stored["targets"]) == len(law_of(result).targets)
    assert stored["why_not"] == ""


def test_the_phase_diagram_is_of_the_run_most_evenly_divided(result: SearchResult) -> None:
    def traced(o: Observation) -> Observation:
        rows = ((0, (0.001,) * len(o.token_p)), (64, tuple(round(p / 2, 3) for p in o.token_p)))
        return replace(o, token_p_curve=rows)

    found = replace(result, observations=tuple(map(traced, result.observations)))
    panel = recall_panels(found)[-1]
    (rows,) = rows_of(panel.spec())
    divided = max(
        (o for o in found.law_observations),
        key=lambda o: min(o.recall.n_stubborn, len(o.token_p) - o.recall.n_stubborn),
    )
    assert f"rank {divided.point.lora_rank} learns {len(divided.token_p)} tokens" in panel.title
    at = {(row["step"], row["token"]): row["p"] for row in rows}
    last = divided.curve[-1][0]
    width = -(-len(divided.token_p) // 320)
    assert {step for step, _ in at} == {0, 64, last}
    for start in range(0, len(divided.token_p), width):
        pooled = divided.token_p[start : start + width]
        assert at[last, start] == pytest.approx(sum(pooled) / len(pooled), abs=6e-4)
    assert "tokens followed while they trained" in recall_text(found.recall_result, ANSWER)
    assert len(recall_panels(result)) == 2


def test_a_table_without_tokens_says_so(result: SearchResult) -> None:
    bare = tuple(replace(o, token_p=(), wrong_tokens=()) for o in result.observations)
    found = replace(result, observations=bare)
    assert found.recall is None and recall_panels(found) == () == recall_tables(found)
    assert "a table keeps shares alone" in recall_text(found.recall_result, ANSWER)
    assert found.to_json()["recall"]["law"] is None
