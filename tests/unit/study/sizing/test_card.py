"""What `size` answers before it trains, as JSON and as text, and what was not recalled."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pmlray.study.sizing.card import answer, describe_answer, describe_recall
from pmlray.study.sizing.choose_rank import choose_rank
from pmlray.study.sizing.decoded_records import DecodedRecords
from pmlray.study.sizing.request import (
    Wanted,
)
from pmlray.types import DesignPoint
from tests.unit.study.sizing.test_choose_rank import BASE_LOSS, LN2, grid, summary_of


def test_the_answer_has_bits_parameters_cost_and_interval() -> None:
    total = 800
    point = DesignPoint(64, total, 100)
    observations = grid(total, (1, 2, 4))
    law = summary_of(observations, point)
    choice = choose_rank(law, observations, Wanted(0.9, 0.9), point, 8.0)
    found = json.loads(
        json.dumps(answer(choice, Wanted(0.9, 0.9), law, 128, 12.5), allow_nan=False)
    )
    assert found["parameters"] == 128 * found["lora_rank"]
    assert found["bits"] == pytest.approx(total * (BASE_LOSS - found["needed_loss"]) / LN2)
    assert found["predicted_gpu_seconds"] == 12.5
    assert found["interval"] == [choice.rank.low, choice.rank.high]
    assert found["interval_level"] == 0.8 and found["law_n_obs"] == law.fit.n_obs
    text = describe_answer(found)
    assert f"law of {law.fit.n_obs} runs, status CONVERGED. {law.headline}" in text
    left_open = {**found, "law_status": "UNDERDETERMINED", "law_message": "two ranks; " * 30}
    last = describe_answer(left_open).splitlines()[-1]
    # One sentence with what to do, however much the law lacks.
    assert "UNDERDETERMINED: go by the recall that decoding finds" in last and len(last) < 200
    assert "two ranks" not in last and "`pmlray fit`" in last
    assert f"rank {found['lora_rank']}" in text and "90 % confidence" in text
    assert "by a rule of thumb, since no law of recall holds" in text
    by_law = {**found, "needed_loss_by": "recall_law"}
    assert "by the law of recall" in describe_answer(by_law)
    unsure = {**found, "interval": [3.0, None], "basis": "largest"}
    assert "bounds 3 and inf" in describe_answer(unsure)


def test_what_was_not_recalled_is_listed_with_what_was_said() -> None:
    pairs, answers = (("a", "x"), ("b", "y"), ("c", "z")), ("x", "z", "zz")
    decoded = DecodedRecords(pairs, answers, (True, False, True), (True, False, False))
    b = {"query": "b", "target": "y", "answer": "z"}
    c = {"query": "c", "target": "z", "answer": "zz"}
    assert decoded.counts() == {
        "n_records": 3, "n_answered": 2, "n_ended": 1, "n_recalled": 1, "exact_recall": 1 / 3,
        "end": True,
    }  # fmt: skip
    assert decoded.missed() == [b, c]
    assert describe_recall(decoded.counts(), 3) == (
        "1 of 3 records word for word and then the end of the answer; 2 answers begin with the"
        " target"
    )
    endless = replace(decoded, end=False)
    assert (endless.n_right, endless.missed()) == (2, [b])
    assert describe_recall(endless.counts(), 3) == (
        "2 of 3 records word for word, whatever follows: 1 answers end there"
    )
