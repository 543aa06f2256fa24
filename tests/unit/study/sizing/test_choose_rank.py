"""Which rank a law says is enough, and how surely."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from pmlray.config.bases.models import TINY
from pmlray.config.search_spec import Model, Probe
from pmlray.errors import DataError
from pmlray.law import AveragedSamples, CeilingLaw, Estimate, LawSummary
from pmlray.law.fitting.averaging import Drawn
from pmlray.study.findings.fitted_runs import fit_observations
from pmlray.study.sizing.choose_rank import (
    RUN_NOISE,
    RankChoice,
    choose_rank,
    needed_rank,
    next_rank,
)
from pmlray.study.sizing.needed_loss import NeededLoss
from pmlray.study.sizing.request import (
    Wanted,
    search_spec,
    sized_spec,
)
from pmlray.types import DesignPoint, Observation, PlannedRun, Recall
from tests.fakes import observe
from tests.unit.study.sizing.test_request import records_of

LN2 = math.log(2.0)
BASE_LOSS = 4.0
LAW = CeilingLaw(30.0, 0.9, 0.5, 0.0, 3.0, BASE_LOSS)


def seen(point: DesignPoint, final_loss: float, exact: float, key: str) -> Observation:
    run = PlannedRun(point, "sft", 0, 0, "law", f"{hash(key) % 2**32:x}")
    return replace(
        observe(run, 0, 0, 0.0, 1e-3),
        base_loss=BASE_LOSS,
        final_loss=final_loss,
        recall=Recall(exact, exact, exact, 0),
    )


def grid(total: int, ranks: tuple[int, ...], noise: float = 0.02) -> tuple[Observation, ...]:
    """The known law on a grid of ranks and lengths, whose small runs recall by their loss."""
    rng = np.random.default_rng(0)
    found = []
    for rank in ranks:
        for length in (total // 8, total // 4, total // 2, total):
            delta = float(LAW.predict(rank, length, 100)) + noise * rng.standard_normal()
            loss = max(BASE_LOSS - delta, 1e-3)
            exact = float(loss < 0.05)
            found.append(seen(DesignPoint(rank, length, 100), loss, exact, f"{rank}-{length}"))
    return tuple(found)


def summary_of(observations: tuple[Observation, ...], point: DesignPoint) -> LawSummary:
    records = records_of(100)
    spec = search_spec(
        records, Model(id=TINY), Probe(layer=1), point.lora_rank, point.train_steps, "plain"
    )
    law = fit_observations(sized_spec(spec, point), observations)
    assert law is not None
    return law


def exactly(law: LawSummary, n: int = 60) -> LawSummary:
    """The same summary where LAW is known without any doubt."""
    fit = replace(law.fit, law=LAW)
    certain = Drawn(fit, np.repeat(LAW.params[None], n, axis=0), np.full(n, fit.sigma))
    samples = AveragedSamples((certain,), law.average.base, np.zeros(n))
    return replace(law, average_samples=samples)


def surely(loss: float) -> NeededLoss:
    return NeededLoss(loss, "rule", "", np.array([loss]))


def test_the_smallest_rank_that_the_law_is_sure_of() -> None:
    total, tokens = 800, 8.0
    observations = grid(total, (1, 2, 4))
    point = DesignPoint(64, total, 100)
    law = summary_of(observations, point)
    choices = [
        choose_rank(law, observations, Wanted(0.9, confidence), point, tokens)
        for confidence in (0.5, 0.9, 0.99)
    ]
    ranks = [choice.point.lora_rank for choice in choices]
    assert ranks == sorted(ranks) and all(c.basis == "law" for c in choices)
    needed = choices[1].needed.value
    wanted = next(
        r for r in range(1, 65) if BASE_LOSS - float(LAW.predict(r, total, 100)) <= needed
    )
    low, high = choices[1].rank.low, choices[1].rank.high
    assert low <= wanted <= math.ceil(high) == ranks[1]
    assert choices[1].point.seq_len == total and choices[1].point.train_steps == 100


def test_a_run_that_has_recalled_enough_is_taken_unless_the_law_is_sure_of_less() -> None:
    total = 800
    point = DesignPoint(64, total, 100)
    observations = grid(total, (1, 2, 4))
    law, wanted = summary_of(observations, point), Wanted(0.9, 0.95)
    needed = choose_rank(law, observations, wanted, point, 8.0).needed.value
    longer = seen(DesignPoint(1, total, 200), 0.01, 1.0, "longer")
    just = seen(DesignPoint(20, total, 100), needed, 1.0, "just")
    chosen = choose_rank(law, (*observations, just, longer), wanted, point, 8.0)
    assert chosen.basis == "measured" and chosen.point.lora_rank == 20 and chosen.shown == just
    amply = seen(DesignPoint(40, total, 100), needed / 20.0, 1.0, "amply")
    chosen = choose_rank(law, (*observations, amply), wanted, point, 8.0)
    assert chosen.basis == "law" and chosen.point.lora_rank < 40 and chosen.shown == amply


def test_a_law_that_asks_for_more_than_was_planned_for_is_followed_to_the_limit() -> None:
    total = 800
    observations = grid(total, (1, 2, 4))
    enough = DesignPoint(64, total, 100)
    law, wanted = summary_of(observations, enough), Wanted(0.9, 0.9)
    told = choose_rank(law, observations, wanted, enough, 8.0).rank.value
    planned = DesignPoint(4, total, 100)
    assert told > 4
    chosen = choose_rank(law, observations, wanted, planned, 8.0, limit=64)
    assert chosen.basis == "estimate" and chosen.point.lora_rank == math.ceil(chosen.rank.value)
    with pytest.raises(DataError, match="largest allowed is 4"):
        choose_rank(law, observations, wanted, planned, 8.0)
    with pytest.raises(DataError, match="largest allowed is 5"):
        choose_rank(law, observations, wanted, planned, 8.0, limit=5)


def test_no_rank_is_below_that_of_the_adapter_to_begin_with() -> None:
    point, wanted = DesignPoint(64, 800, 100), Wanted(0.9, 0.9)
    observations = grid(800, (1, 2, 4))
    law = summary_of(observations, point)
    by_law = choose_rank(law, observations, wanted, point, 8.0)
    most = by_law.point.lora_rank
    assert choose_rank(law, observations, wanted, point, 8.0, least=most) == by_law
    chosen = choose_rank(law, observations, wanted, point, 8.0, least=most + 1)
    assert (chosen.point.lora_rank, chosen.basis) == (most + 1, "start")


def test_a_run_on_the_whole_set_anchors_the_law() -> None:
    total = 800
    point = DesignPoint(64, total, 100)
    subsets = tuple(o for o in grid(total, (1, 2, 4), noise=0.0) if o.point.seq_len < total)
    law, needed = exactly(summary_of(subsets, point)), 0.05
    by_law = LAW.invert_rank(total, 100, BASE_LOSS - needed)
    assert needed_rank(law, (), surely(needed), point, 0.8).value == pytest.approx(by_law, rel=0.05)
    # The whole set takes twice the rank that its subsets promise.
    loss = BASE_LOSS - float(LAW.predict(6, total, 100))
    anchor = seen(DesignPoint(12, total, 100), loss, 0.0, "anchor")
    far = seen(DesignPoint(1, total, 100), 3.0, 0.0, "far")
    found = needed_rank(law, (far, anchor), surely(needed), point, 0.8)
    assert found.value == pytest.approx(2.0 * by_law, rel=0.05)
    assert found.low < found.value < found.high


def noisy(loss: float | np.ndarray, normal: float | np.ndarray) -> float | np.ndarray:
    """A run's final loss where its log odds of the base loss scatter by RUN_NOISE."""
    return BASE_LOSS * expit(logit(loss / BASE_LOSS) + RUN_NOISE * normal)


def test_the_interval_holds_the_doubt_about_the_needed_loss_and_a_runs_noise() -> None:
    total = 800
    point = DesignPoint(64, total, 100)
    law = exactly(summary_of(grid(total, (1, 2, 4), noise=0.0), point), 600)
    octaves = np.linspace(-1.0, 1.0, 101)
    doubtful = replace(surely(0.05), draws=0.05 * 2.0**octaves)
    sure = needed_rank(law, (), surely(0.05), point, 0.8)
    found = needed_rank(law, (), doubtful, point, 0.8)
    assert found.value == sure.value
    normal = np.random.default_rng(1).standard_normal(100_000)
    for told, spread in ((sure, 0.0), (found, np.resize(octaves, normal.size))):
        losses = noisy(0.05 * 2.0**spread, normal)
        for rank, quantile in ((told.high, 0.1), (told.low, 0.9)):
            by_law = LAW.invert_rank(total, 100, BASE_LOSS - float(np.quantile(losses, quantile)))
            assert rank == pytest.approx(by_law, rel=0.05)
    assert found.low < sure.low < sure.high < found.high


def test_one_run_at_the_upper_end_reaches_the_needed_loss_as_surely_as_was_asked() -> None:
    total, needed = 800, 0.05
    point = DesignPoint(64, total, 100)
    law = exactly(summary_of(grid(total, (1, 2, 4), noise=0.0), point))
    rng = np.random.default_rng(2)

    def run(rank: float) -> float:
        told = BASE_LOSS - float(LAW.predict(rank, total, 100))
        return float(noisy(told, rng.standard_normal()))

    reached = []
    for _ in range(120):
        anchor = seen(DesignPoint(12, total, 100), run(12), 0.0, "anchor")
        reached.append(run(needed_rank(law, (anchor,), surely(needed), point, 0.8).high) <= needed)
    # One-sided 0.9, give or take three standard errors.
    assert np.mean(reached) == pytest.approx(0.9, abs=0.082)


def test_records_that_the_largest_rank_cannot_hold_are_refused() -> None:
    total = 800
    observations = grid(total, (1, 2, 4))
    point = DesignPoint(2, total, 100)
    with pytest.raises(DataError, match="largest allowed is 2: train longer"):
        choose_rank(summary_of(observations, point), observations, Wanted(0.99, 0.9), point, 8.0)


def test_ranks_rise_by_half_up_to_the_largest() -> None:
    at = DesignPoint(1, 800, 100)
    choice = RankChoice(at, "law", surely(0.05), 3.95, Estimate(1.0, 1.0, 1.0))
    tried = [1]
    while (rank := next_rank(tried[-1], choice, 20)) is not None:
        tried.append(rank)
    assert tried == [1, 2, 3, 5, 8, 12, 18, 20]
    shown = seen(DesignPoint(16, 800, 100), 0.01, 1.0, "shown")
    assert next_rank(5, replace(choice, shown=shown), 20) == 16
    # Should its real decoding fall short after all, the rank rises from there.
    assert next_rank(16, replace(choice, shown=shown), 20) == 20


def test_a_run_that_has_recalled_too_little_overrules_the_law() -> None:
    total = 800
    point = DesignPoint(64, total, 100)
    observations = grid(total, (1, 2, 4))
    law = summary_of(observations, point)
    bound = choose_rank(law, observations, Wanted(0.9, 0.9), point, 8.0).point.lora_rank
    # As low a loss as is needed, and yet too little.
    failed = seen(DesignPoint(bound + 3, total, 100), 0.07, 0.85, "failed")
    chosen = choose_rank(law, (*observations, failed), Wanted(0.9, 0.9), point, 8.0)
    assert chosen.point.lora_rank > bound + 3 and chosen.basis == "law"
    # Where the bound stays below a rank that was too small, it is not told as the reason.
    unlucky = seen(DesignPoint(40, total, 100), 0.3, 0.5, "unlucky")
    chosen = choose_rank(law, (*observations, failed, unlucky), Wanted(0.9, 0.9), point, 8.0)
    assert (chosen.point.lora_rank, chosen.basis) == (41, "failed_below")
    assert chosen.rank.high < 40
