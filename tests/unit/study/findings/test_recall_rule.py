"""Runs whose exact recall counts other things are never shown together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pmlray.errors import DataError
from pmlray.study.findings.recall_rule import ANSWER, ANSWER_AND_END, recall_rule
from pmlray.study.findings.result import SearchResult, assemble
from tests.unit.study.conftest import MakeResult


def test_a_report_never_mixes_two_rules(make_result: MakeResult) -> None:
    result: SearchResult = make_result(n_rounds=1)
    former = result.observations
    assert recall_rule(former) == ANSWER
    ended = tuple(replace(o, recall=replace(o.recall, answered=o.recall.exact)) for o in former)
    assert recall_rule(ended) == ANSWER_AND_END
    assert assemble(result.spec, ended, (), ()).to_json()["recall"]["exact_recall_counts"] == (
        ANSWER_AND_END
    )
    mixed = (*former[:1], *ended[1:])
    with pytest.raises(DataError, match="keep them in two stores"):
        assemble(result.spec, mixed, (), ())
