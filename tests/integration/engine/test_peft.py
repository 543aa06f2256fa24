"""A `down_proj` run is a PEFT run: same losses step by step, and PEFT loads what we save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.placement import Site
from pmlray.engine.adapters.packed_lora import initial_As
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.model.base_model import BaseModel
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=3e-3, weight_decay=0.01)
STEPS = 30


@pytest.mark.parametrize("end_id", [None, 1], ids=["no end", "with its end"])
def test_down_proj_run_equals_peft_with_adamw(
    tiny: Callable[..., BaseModel], fresh_tiny: Callable[..., BaseModel], end_id: int | None
) -> None:
    record = replace(random_record(24), end_id=end_id)
    run = make_run(4, 24, STEPS, seed=7)
    ours = train(tiny("down_proj", 2), [run], [[record]], RECIPE).members[0]

    model = fresh_tiny("down_proj", 2).model
    config = peft.LoraConfig(
        r=4, lora_alpha=4, lora_dropout=0.0, target_modules=["down_proj"], layers_to_transform=[2]
    )
    peft_model = peft.get_peft_model(model, config)
    lora = [p for p in peft_model.parameters() if p.requires_grad]
    a = next(p for p in lora if p.shape[0] == 4)
    (first,) = initial_As({Site(1, "mlp.down_proj"): (a.shape[1], 64)}, 4, seed=7).values()
    a.data = first.T.contiguous()
    optimizer = torch.optim.AdamW(lora, lr=1.0, weight_decay=RECIPE.weight_decay)
    end = [] if end_id is None else [end_id]
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids, *end]])
    labels = ids.clone()
    labels[0, : len(record.prompt_ids)] = -100
    # Lengths, curves and losses are of the target alone; the end is trained beside it.
    of_target = labels.clone()
    of_target[0, len(record.prompt_ids) + 24 :] = -100
    losses, target_losses, end_p = [], [], []
    for step in range(STEPS + 1):
        output = peft_model(ids, labels=labels)
        loss = output.loss
        with torch.no_grad():
            target_losses.append(peft_model.get_base_model().loss_function(
                output.logits, of_target, vocab_size=output.logits.shape[-1]
            ).item())  # fmt: skip
            end_p.append(output.logits[0, -2].softmax(-1)[ids[0, -1]].item())
        if step == STEPS:
            break
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, RECIPE.clip_norm)
        optimizer.param_groups[0]["lr"] = RECIPE.rate_at(step, STEPS)
        optimizer.step()
    assert ours.step_losses == pytest.approx(losses, rel=1e-5)
    found, wanted = dict(ours.curve), dict(enumerate(target_losses))
    assert found == pytest.approx({step: wanted[step] for step in found}, rel=1e-5)
    assert sorted(found) == [0, 1, 2, 4, 8, 16, 30]
    assert len(ours.scores.token_p) == 24
    if end_id is None:
        assert ours.scores.end_p == ()
    else:
        assert ours.scores.end_p == pytest.approx(end_p[-1:], rel=1e-4)
        assert abs(losses[-1] / target_losses[-2] - 1) > 1e-3
    # Training moved the loss by far more than the tolerance.
    assert losses[-1] < losses[0] - 0.05


def test_peft_loads_a_saved_adapter_with_the_same_logits(
    tiny: Callable[..., BaseModel],
    fresh_tiny: Callable[..., BaseModel],
    tiny_folder: str,
    tmp_path: Path,
) -> None:
    base = tiny("down_proj", 1)
    record = random_record(16)
    trained = train(base, [make_run(2, 16, 20)], [[record]], RECIPE)
    ((a, b),) = trained.model.lora.weights(0).values()
    save_adapter(tmp_path, base.placement, trained.model.lora.weights(0), tiny_folder)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad(), base.with_adapter(lambda _site, x: x @ a @ b):
        ours = base.model(ids).logits
    with torch.no_grad():
        bare = base.model(ids).logits
        loaded = peft.PeftModel.from_pretrained(fresh_tiny("down_proj", 1).model, str(tmp_path))
        theirs = loaded(ids).logits
    # Logits are of order 10: this is fp32's own rounding.
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(bare, ours, atol=1e-3)


def test_mlp_adapter_round_trips(tiny: Callable[..., BaseModel], tmp_path: Path) -> None:
    base = tiny("mlp", 1)
    trained = train(base, [make_run(3, 8, 5)], [[random_record(8)]], RECIPE)
    weights = trained.model.lora.weights(0)
    save_adapter(tmp_path, base.placement, weights, "base")
    adapter = read_adapter(tmp_path)
    assert isinstance(adapter, SiteAdapter) and adapter.placement == base.placement
    ((own, read),) = zip(weights.values(), adapter.weights.values(), strict=True)
    for mine, theirs in zip(own, read, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
