"""Greedy decoding of records, against plain argmax loops and PEFT's own adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.adapters.peft_io import MLP_CONFIG_FILE, save_adapter
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.evaluation.greedy_decode import decode_records
from pmlray.engine.evaluation.plain_greedy import most_answer_tokens
from pmlray.engine.model.base_model import BaseModel
from pmlray.errors import DataError, ModelError
from pmlray.memory import Record
from tests.adapters import at_site
from tests.unit.engine.conftest import make_run, random_record, train

RECORDS = (
    random_record(4, 0, prompt=5),
    random_record(2, 1, prompt=3),
    random_record(6, 2, prompt=5),
    random_record(3, 3, prompt=4),
)
# The end token of tiny-random-llama.
END = 1
Weights = tuple[torch.Tensor, torch.Tensor]


def random_weights(width: int, rank: int = 3) -> Weights:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(width, rank, generator=generator)
    # Large enough that the adapter changes what is decoded.
    return a, 0.2 * torch.randn(rank, 64, generator=generator)


def adapter_of(base: BaseModel, weights: Weights) -> SiteAdapter:
    return SiteAdapter("any", base.placements[0], at_site(base.placements[0], *weights))


def width_of(base: BaseModel) -> int:
    ((width, _),) = base.site_shapes.values()
    return width


def by_hand(base: BaseModel, record: Record, weights: Weights | None) -> tuple[int, ...]:
    """One token at a time, without a cache."""
    a, b = weights or (torch.zeros(width_of(base), 1), torch.zeros(1, 64))
    ids = list(record.prompt_ids)
    for _ in range(most_answer_tokens(record)):
        with torch.no_grad(), base.with_adapter(lambda _site, x: x @ a @ b):
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return tuple(ids[len(record.prompt_ids) :])


def test_answers_are_those_of_a_plain_loop_in_file_order(tiny: Callable[..., BaseModel]) -> None:
    base = tiny()
    weights = random_weights(64)
    recited = decode_records(base, adapter_of(base, weights), RECORDS, {END})
    assert [r.record for r in recited] == list(RECORDS)
    said = [by_hand(base, r, weights) for r in RECORDS]
    assert [(*r.answer_ids, *[END] * r.ended) for r in recited] == said
    assert any(r.answer_ids != by_hand(base, r.record, None) for r in recited)


def test_right_means_every_token_of_the_target(tiny: Callable[..., BaseModel]) -> None:
    base = tiny()
    weights = random_weights(64)
    said = [by_hand(base, record, weights) for record in RECORDS]
    exact = Record(RECORDS[0].prompt_ids, said[0][:4])
    last_wrong = Record(RECORDS[2].prompt_ids, (*said[2][:3], (said[2][3] + 1) % 258))
    found = decode_records(base, adapter_of(base, weights), [exact, last_wrong], {END})
    assert [r.answered for r in found] == [True, False]


def test_an_answer_is_recalled_where_it_ends_after_its_target(
    tiny: Callable[..., BaseModel],
) -> None:
    base = tiny()
    weights = random_weights(64)
    prompt = RECORDS[0].prompt_ids
    said = by_hand(base, RECORDS[0], weights)
    # Whatever comes third is taken for the end, so that the answer is two tokens long.
    assert said[2] not in said[:2]
    of_two, of_one = Record(prompt, said[:2]), Record(prompt, said[:1])
    found = decode_records(base, adapter_of(base, weights), [of_two, of_one], {said[2]})
    assert [r.answer_ids for r in found] == [said[:2]] * 2
    assert [(r.answered, r.recalled) for r in found] == [(True, True), (True, False)]
    # Inside a target the same token ends nothing, and is not itself the end.
    inside = Record(prompt, said[:4])
    (found_inside,) = decode_records(base, adapter_of(base, weights), [inside], {said[2]})
    assert found_inside.answered and found_inside.answer_ids[:4] == said[:4]
    # An answer that never ends is cut off, and is no record recalled.
    (endless,) = decode_records(base, adapter_of(base, weights), [of_two], {257})
    assert len(endless.answer_ids) == most_answer_tokens(of_two)
    assert endless.answered and not endless.recalled


def test_settings_of_the_bases_own_generation_config_are_not_used(
    fresh_tiny: Callable[..., BaseModel],
) -> None:
    base, weights = fresh_tiny(), random_weights(64)
    plain = decode_records(base, adapter_of(base, weights), RECORDS, {END})
    base.model.generation_config.update(
        repetition_penalty=3.0, no_repeat_ngram_size=1, suppress_tokens=list(range(100)),
        do_sample=True, temperature=5.0,
    )  # fmt: skip
    assert decode_records(base, adapter_of(base, weights), RECORDS, {END}) == plain


def test_a_trained_adapter_recites_what_it_learnt(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    base = tiny()
    recipe = Recipe(learning_rate=1e-2, batch_size=4, stop_loss=0.0, stop_gain=0.0)
    trained = train(base, [make_run(8, 15, 60)], [RECORDS], recipe)
    save_adapter(tmp_path, base.placements[0], trained.model.lora.weights(0), "tiny-random-llama")
    adapter = read_adapter(tmp_path)
    assert adapter.base_model == "tiny-random-llama" and adapter.lora_rank == 8
    right = [r.answered for r in decode_records(base, adapter, RECORDS, {END})]
    wrong = trained.members[0].scores.wrong
    assert right == [not any(row) for row in wrong] and any(right)


@pytest.mark.parametrize(("alpha", "rslora"), [(3, False), (12, False), (6, True)])
def test_a_peft_folder_answers_as_peft_does(
    tiny: Callable[..., BaseModel],
    fresh_tiny: Callable[..., BaseModel],
    tmp_path: Path,
    alpha: int,
    rslora: bool,
) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=alpha, use_rslora=rslora, target_modules=["down_proj"],
        layers_to_transform=[2],
    )  # fmt: skip
    theirs = peft.get_peft_model(fresh_tiny("down_proj", 2).model, config).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    theirs.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path)
    base = tiny("down_proj", 2)
    assert isinstance(adapter, SiteAdapter)
    adapter.check_fits(base)
    for recited in decode_records(base, adapter, RECORDS, {END}):
        prompt = torch.tensor([recited.record.prompt_ids])
        with torch.no_grad():
            said = theirs.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=most_answer_tokens(recited.record), eos_token_id=END,
                pad_token_id=0,
            )  # fmt: skip
        answer = (*recited.answer_ids, *[END] * recited.ended)
        assert answer == tuple(said[0, prompt.shape[1] :].tolist())


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(tmp_path)
    (tmp_path / MLP_CONFIG_FILE).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path)


def test_an_adapter_of_other_widths_is_refused(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    base = tiny()
    weights = at_site(base.placements[0], torch.zeros(96, 2), torch.zeros(2, 64))
    save_adapter(tmp_path, base.placements[0], weights, "another")
    config = json.loads((tmp_path / MLP_CONFIG_FILE).read_text())
    assert config["base_model"] == "another"
    adapter = read_adapter(tmp_path)
    assert isinstance(adapter, SiteAdapter)
    with pytest.raises(ModelError, match=r"96 to 64 values.*64 to 64.*another"):
        adapter.check_fits(base)


def test_a_record_beyond_the_context_is_named(tiny: Callable[..., BaseModel]) -> None:
    long = random_record(1020, prompt=5)
    with pytest.raises(DataError, match="record 2 needs 1025 tokens"):
        decode_records(tiny(), adapter_of(tiny(), random_weights(64)), [RECORDS[0], long], {END})
