"""Laws of several placements, against truths whose worths are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import (
    AveragedLaw,
    LawData,
    LawSummary,
    PlacedPoint,
    Placement,
    average_laws,
    depth_worths,
    fit_law,
    kind_worths,
    placement_worths,
    size_for,
)
from pmlray.law.summary_json import worths_json
from pmlray.types import DesignPoint
from tests.unit.law.placed_points import (
    ATTENTION,
    BLOCK,
    DOWN,
    DOWN_EARLY,
    LINEAR,
    TRUE,
    placed,
    placed_data,
    true_rank,
)

WORTHS = {BLOCK: 1.0, DOWN: 1.4, DOWN_EARLY: 1.2, ATTENTION: 0.7}
POINT = DesignPoint(4, 512, 200)


@pytest.fixture(scope="module")
def data() -> LawData:
    return placed_data(WORTHS, 3)


@pytest.fixture(scope="module")
def law(data: LawData) -> LawSummary:
    targets = [PlacedPoint(POINT, p) for p in (*WORTHS, LINEAR)]
    return fit_law(data, targets=[*targets, POINT])


@pytest.fixture(scope="module")
def average(data: LawData) -> AveragedLaw:
    return average_laws(data, ("ceiling",))


def test_one_placement_is_fitted_bit_for_bit_as_ranks_are() -> None:
    plain = placed_data({BLOCK: 1.0}, 1, ranks=(1, 4, 8), n_texts=1)
    bare = replace(plain, placement=None, placements=())
    told = [fit_law(data, "ceiling", targets=[POINT]).to_json(4.0) for data in (plain, bare)]
    assert json.dumps(told[0]) == json.dumps(told[1])


def test_worths_are_recovered_within_their_intervals(data: LawData, law: LawSummary) -> None:
    reference, *others = placement_worths(data, law.average_samples, [LINEAR])
    assert (reference.value, reference.low, reference.high) == (1.0, 1.0, 1.0)
    for found, truth in zip(others, [*WORTHS.values()][1:], strict=False):
        assert found.low < truth < found.high and found.n_points == 8
        assert found.high / found.low < 1.7
    *seen, unseen = others
    assert unseen.n_points == 0
    assert unseen.high / unseen.low > max(found.high / found.low for found in seen)


def test_predictions_are_those_of_the_truth_and_widen_without_points(law: LawSummary) -> None:
    *seen, unseen, plain = law.targets
    for told in seen:
        assert told.placement is not None
        truth = float(TRUE.predict(true_rank(told.placement, WORTHS[told.placement], 4), 512, 200))
        assert told.low < truth < told.high < told.run_high
    # In shares of what is told, since the law saturates; all but one of its modules were seen.
    assert unseen.relative_half_width > max(told.relative_half_width for told in seen)
    assert plain.delta_loss == pytest.approx(seen[0].delta_loss, rel=1e-6)
    assert plain.placement is None and seen[0].placement == BLOCK


def test_a_placement_told_from_more_is_told_more_closely() -> None:
    """One point of a place tells more than none, and all of its points more than one."""
    everything = placed_data(WORTHS, 5)
    assert everything.placement is not None
    early = np.flatnonzero(everything.placement == 2)
    few = np.delete(np.arange(len(everything)), early[1:])
    none = np.delete(np.arange(len(everything)), early)
    widths = []
    for kept in (np.arange(len(everything)), few, none):
        found = average_laws(everything.subset(kept), ("ceiling",))
        samples = found.sample(80, np.random.default_rng(0))
        widths.append(float(samples.log_worth(DOWN_EARLY).std()))
    assert widths[0] < widths[1] < widths[2]
    # Without points a place is told from its kin: down_proj elsewhere is worth twice attention.
    attention_early = placed("early attention", ("attention",), (5,))
    places = found.best.places
    assert places is not None
    down, attention = (
        places.log_factor(p) - np.log(p.params_per_rank) for p in (DOWN_EARLY, attention_early)
    )
    assert np.log(1.15) < down - attention < np.log(2.0)


def test_samples_are_laws_in_the_ranks_of_a_placement(average: AveragedLaw) -> None:
    samples = average.sample(20, np.random.default_rng(0))
    for placement in (DOWN, LINEAR):
        at = samples.at(placement)
        told = at.predict([2.0, 5.0], [300.0, 900.0], 200.0)
        laws = zip(at.laws_at(300.0), at.laws_at(900.0), strict=True)
        one_by_one = [
            (float(a.predict(2.0, 300.0, 200.0)), float(b.predict(5.0, 900.0, 200.0)))
            for a, b in laws
        ]
        floor, base = np.abs(at.shift)[:, None], (12.0 + at.shift)[:, None]
        assert told == pytest.approx(np.clip(one_by_one, floor, base), rel=1e-9)


def test_the_likeliest_law_at_a_placement_is_that_of_its_points(
    data: LawData, average: AveragedLaw
) -> None:
    told = average.predict_points(data)
    for place, placement in enumerate(data.placements):
        at = data.placement == place
        axes = (data.lora_rank[at], data.seq_len[at], data.train_steps[at])
        assert average.predict(*axes, placement) == pytest.approx(told[at], rel=1e-9)


def test_a_size_counts_ranks_of_its_placement(average: AveragedLaw) -> None:
    samples = average.sample(100, np.random.default_rng(0))
    for placement in (BLOCK, DOWN, ATTENTION):
        found = size_for(samples.at(placement), POINT, 4.0)
        worth = WORTHS[placement]
        ranks = np.geomspace(0.5, 64.0, 4000)
        reached = TRUE.predict(true_rank(placement, worth, ranks), 512, 200) >= 4.0
        wanted = ranks[int(np.argmax(reached))]
        assert found.lora_rank.low < wanted < found.lora_rank.high
        assert found.placement == placement
        assert found.to_json()["placement"] == placement.name


def test_kinds_and_depths_are_told_as_far_as_points_go(law: LawSummary) -> None:
    kinds = {found.name: found for found in kind_worths(law.average_samples)}
    assert kinds["mlp_out"].value > kinds["attention"].value
    depths = {found.name: found for found in depth_worths(law.average_samples)}
    assert depths["middle"].low == depths["middle"].high == 1.0
    # Nothing was measured in the last layers.
    assert depths["last"].low < 1.0 < depths["last"].high


def test_one_placement_tells_others_by_what_is_believed_alone() -> None:
    data = placed_data({BLOCK: 1.0}, 2, ranks=(1, 2, 4, 8))
    samples = average_laws(data, ("ceiling",)).sample(500, np.random.default_rng(0))
    log_w = samples.log_worth(ATTENTION)
    # Kinds' 0.3 each, of the block in shares of 2 : 1, and twice a placement's own 0.25.
    spread = 0.3**2 * (1 + 4 / 9 + 1 / 9) + 2 * 0.25**2
    assert log_w.std() == pytest.approx(np.sqrt(spread), rel=0.1)
    assert np.all(samples.log_worth(BLOCK) == 0.0)


def test_points_that_do_not_say_their_place_tell_no_other() -> None:
    bare = replace(placed_data({BLOCK: 1.0}, 2), placement=None, placements=())
    found = average_laws(bare, ("ceiling",))
    with pytest.raises(DataError, match="where their adapters sit"):
        found.predict(4.0, 512.0, 200.0, DOWN)
    with pytest.raises(DataError, match="where their adapters sit"):
        found.sample(10, np.random.default_rng(0)).at(DOWN).predict(4.0, 512.0, 200.0)


def test_the_summary_says_what_ranks_count_as_and_who_told_it() -> None:
    few = placed_data(WORTHS, 3)
    assert few.placement is not None
    known = (few.placement != 3) | (np.cumsum(few.placement == 3) <= 1)
    law = fit_law(few.subset(known), "ceiling")
    assert "log w" in law.checklist["placements"] and "block" in law.checklist["placements"]
    stored = json.loads(json.dumps(law.to_json()))
    names = [row["name"] for row in stored["worth"]["placements"]]
    assert names == [placement.name for placement in WORTHS]
    assert [row["n_points"] for row in stored["worth"]["placements"]] == [8, 8, 8, 1]
    strange = [Placement(f"{n}", (replace(p.sites[0], kind="other", depth=None),))
               for n, p in enumerate(WORTHS)]  # fmt: skip
    nameless = replace(few, placements=tuple(strange))
    samples = average_laws(nameless, ("power",)).sample(20, np.random.default_rng(0))
    assert set(worths_json(nameless, samples)["worth"]) == {"placements"}


def test_predict_takes_a_placement_by_its_name(law: LawSummary) -> None:
    by_place = {target.placement: target for target in law.targets}
    at = (POINT.lora_rank, POINT.seq_len, POINT.train_steps)
    for placement in WORTHS:
        found, target = law.predict(*at, placement=placement.name), by_place[placement]
        assert found.median == pytest.approx(target.delta_loss)
        assert (found.placement, found.far) == (placement.name, target.far)
    reference = law.predict(*at)
    assert reference.placement == BLOCK.name
    assert reference.median == pytest.approx(law.predict(*at, placement=BLOCK.name).median)
    with pytest.raises(DataError, match="it has block, down"):
        law.predict(*at, placement="nowhere")
