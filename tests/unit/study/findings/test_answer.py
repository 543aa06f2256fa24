"""What a search says at its end, in words that somebody can act on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import scipy

from pmlray.study.findings.answer import plain_answer, tried_points
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.types import DesignPoint, Observation, Recall
from tests.unit.study.conftest import make_spec

MakeResult = Callable[..., SearchResult]


def run(
    template: Observation, rank: int, length: int, exact: float, token: float = 1.0, text: int = 0
) -> Observation:
    return replace(
        template,
        run_key=f"{rank}-{length}-{text}",
        point=DesignPoint(rank, length, 80),
        sequence_id=text,
        recall=Recall(token, token, exact, 0),
        gpu_seconds=4.0,
    )


def answer(result: SearchResult, runs: list[Observation], **spec: object) -> tuple[str, ...]:
    return plain_answer(assemble(make_spec(**spec), runs, (), ()))


@pytest.fixture
def template(result: SearchResult) -> Observation:
    return result.law_observations[0]


def test_the_smallest_rank_that_recalled_the_longest_texts_is_named(
    result: SearchResult, template: Observation
) -> None:
    runs = [run(template, 4, 40, 1.0), run(template, 16, 40, 1.0)]
    runs += [run(template, r, 64, 1.0, text=text) for r in (8, 16) for text in (0, 1, 2)]
    runs += [run(template, 4, 64, 0.0, 0.9), run(template, 8, 96, 0.0, 0.7, 0)]
    said, *_, then = answer(result, runs)
    assert said == (
        "Rank 8 with 64 tokens and 80 steps recalled 3 of 3 texts word for word, for about 4 CPU"
        " core-seconds a run. Chosen among 6 points, that says with 90 % confidence that at least"
        " 26 % of many more like them would be. At 96 tokens it recalled 0 of 1."
    )
    assert then.endswith("pmlray size --records FILE.jsonl --model tiny-random-llama")


def test_one_text_among_many_points_says_nothing_of_others(
    result: SearchResult, template: Observation
) -> None:
    runs = [run(template, rank, 64, 0.0, 0.5) for rank in range(2, 32)]
    said, *_ = answer(result, [*runs, run(template, 32, 64, 1.0)])
    assert said.endswith("says nothing of many more like them: repeat it with more sequences.")


def test_how_sure_that_is_follows_from_how_many_were_tried(template: Observation) -> None:
    for n in (1, 2, 3, 10):
        (tried,) = tried_points([run(template, 8, 64, 1.0, text=i) for i in range(n)])
        # Were the share any smaller, so many successes would come by chance less than once in ten.
        chance = scipy.stats.binom.sf(tried.n_right - 1, tried.n, tried.least_share())
        assert chance == pytest.approx(0.1)
        assert tried.least_share() == pytest.approx(0.1 ** (1 / n))
        # The best of five has five times the chance to be right by luck.
        assert tried.least_share(5) == pytest.approx(0.02 ** (1 / n))


def test_records_are_counted_one_by_one(result: SearchResult, template: Observation) -> None:
    template = replace(template, provenance={**template.provenance, "n_records": 30})
    runs = [run(template, 8, 300, 29 / 30, 0.99), run(template, 4, 150, 1.0)]
    said, *_ = answer(result, runs, task={"kind": "phonebook", "prompt_format": "plain"})
    assert said.startswith("Rank 4 with 150 tokens and 80 steps recalled 30 of 30 entries")


def test_records_that_are_not_counted_are_recalled_whole_or_not(
    result: SearchResult, template: Observation
) -> None:
    """A table does not say how many entries a run held: nine tenths of them are not one of one."""
    phones = {"kind": "phonebook", "prompt_format": "plain"}
    most = run(template, 8, 300, 0.9, 0.99)
    assert [t.n_right for t in tried_points([most])] == [0]
    said, *_ = answer(result, [most, run(template, 4, 150, 1.0)], task=phones)
    assert said.startswith("Rank 4 with 150 tokens and 80 steps recalled the one text that was")


def test_where_nothing_was_recalled_whole_the_nearest_is_named(
    result: SearchResult, template: Observation
) -> None:
    runs = [run(template, 1, 64, 0.0, 0.2), run(template, 2, 64, 0.0, 0.41)]
    said, *_ = answer(result, runs)
    assert "nearest came rank 2 with 64 tokens and 80 steps with 0 of 1 texts and 41 %" in said


def test_what_memft_changed_is_told_beside_plain_fine_tuning(make_result: MakeResult) -> None:
    found = make_result()
    _, memft, _ = plain_answer(found)
    assert "MemFT-OT" in memft and "4 pairs" in memft and "plain fine-tuning" in memft
    assert len(plain_answer(make_result(memft=False))) == 2


def test_nothing_measured_is_said_to_be_nothing(result: SearchResult) -> None:
    (said,) = answer(result, [])
    assert said == "Nothing was measured, so that nothing can be said."
