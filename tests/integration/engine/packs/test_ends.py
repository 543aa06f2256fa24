"""Records with an end: what is trained, what is measured, and what a length is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.adapters.stored_adapter import SiteAdapter
from pmlray.engine.evaluation.greedy_decode import decode_records
from pmlray.engine.evaluation.scores import score_tokens
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import Row
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.memory import Record
from pmlray.types import MemftRules, Method
from tests.unit.engine.conftest import make_run, random_record, train

END = 1
RECIPE = Recipe(learning_rate=2e-2, batch_size=3, stop_loss=0.0, stop_gain=0.0)
RECORDS = [replace(random_record(5, i), end_id=END) for i in range(3)]


@pytest.mark.parametrize("method", ["sft", "memft_ot", "memft_sw", "memft_fw", "memft_rd"])
def test_every_method_teaches_the_end(tiny: Callable[..., BaseModel], method: Method) -> None:
    base = tiny()
    trained = train(base, [make_run(16, 15, 120, method)], [RECORDS], RECIPE, MemftRules())
    scores = trained.members[0].scores
    assert min(scores.end_p) > 0.5 and len(scores.end_p) == 3 and len(scores.token_p) == 15
    assert scores.recall.exact == scores.recall.answered == 1.0
    adapter = SiteAdapter("", base.placements[0], trained.model.lora.weights(0))
    found = decode_records(base, adapter, RECORDS, {END})
    assert all(answer.recalled for answer in found)
    # Without ends the same runs answer as well, and go on and on.
    endless = [replace(record, end_id=None) for record in RECORDS]
    trained = train(base, [make_run(16, 15, 120, method)], [endless], RECIPE, MemftRules())
    adapter = SiteAdapter("", base.placements[0], trained.model.lora.weights(0))
    found = decode_records(base, adapter, RECORDS, {END})
    assert trained.members[0].scores.recall.answered is None
    assert all(a.answered for a in found) and not any(a.recalled for a in found)


def test_a_run_under_the_threshold_goes_on_until_its_ends_are_recalled(
    tiny: Callable[..., BaseModel],
) -> None:
    # With the end of one record another's target token, only the end is hard to learn.
    recipe = RECIPE.model_copy(update={"batch_size": 1})
    base, record = tiny(), random_record(6)
    first = train(base, [make_run(8, 6, 400, "memft_ot")], [[record]], recipe).members[0]
    again = replace(record, target_ids=record.target_ids[:-1], end_id=record.target_ids[-1])
    with_end = train(base, [make_run(8, 6, 400, "memft_ot")], [[again]], recipe).members[0]
    # The same tokens are trained, so that the run ends at the same step with the same losses.
    assert with_end.step_losses == first.step_losses and len(first.step_losses) < 400
    assert (*with_end.scores.token_p, *with_end.scores.end_p) == first.scores.token_p


def test_exact_recall_asks_for_the_end_and_token_recall_does_not(
    tiny: Callable[..., BaseModel],
) -> None:
    base = tiny()
    endless = [replace(record, end_id=None) for record in RECORDS]
    found = train(base, [make_run(16, 15, 120)], [endless], RECIPE).model.lora.weights(0)
    ((a, b),) = found.values()
    run = make_run(16, 15, 1)
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-12})
    # Score the adapter that knows the answers alone on records with ends.
    trained = train(base, [run], [RECORDS], recipe)
    with torch.no_grad():
        trained.model.lora.factors[0].A[0, 0, :, :16] = a
        trained.model.lora.factors[0].B[0, 0, :16] = b
    rows = [Row(0, i, cached) for i, cached in enumerate(build_prefix_cache(base, RECORDS))]
    recall = score_tokens(trained.model, rows).recall
    assert (recall.token, recall.prefix, recall.answered, recall.exact) == (1.0, 1.0, 1.0, 0.0)
    assert recall.right_answers == 1.0


def test_a_shorter_length_ends_after_its_own_last_token(tiny: Callable[..., BaseModel]) -> None:
    record = replace(random_record(9), end_id=END)
    (whole,) = build_prefix_cache(tiny(), [record])
    cut = whole.shortened(4)
    (alone,) = build_prefix_cache(tiny(), [Record(record.prompt_ids, record.target_ids[:4], END)])
    assert cut.targets_L.tolist() == [*record.target_ids[:4], END] == alone.targets_L.tolist()
    assert (cut.n_targets, cut.n_supervised, cut.ends) == (4, 5, True)
    torch.testing.assert_close(cut.hidden_TD, alone.hidden_TD)
    assert not whole.truncated(9).ends and whole.truncated(10).ends
