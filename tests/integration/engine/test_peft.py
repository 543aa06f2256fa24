"""A run is a PEFT run: same losses step by step, and PEFT loads what we save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pmlray.config import Recipe
from pmlray.config.adapters.placement import DOWN_PROJ, Placement, Site
from pmlray.engine.adapters.packed_factors import initial_As
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.model.base_model import BaseModel
from tests.placements import PLACEMENTS
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=3e-3, weight_decay=0.01)
STEPS = 30
LINEAR = {"down_proj of one layer": Placement((2,), (DOWN_PROJ,))} | {
    name: placement for name, placement in PLACEMENTS.items() if not placement.is_block
}


@pytest.mark.parametrize("end_id", [None, 1], ids=["no end", "with its end"])
@pytest.mark.parametrize("placement", LINEAR.values(), ids=LINEAR)
def test_a_run_equals_peft_with_adamw(
    tiny_at: Callable[[Placement], BaseModel],
    tiny_folder: str,
    placement: Placement,
    end_id: int | None,
) -> None:
    record = replace(random_record(24), end_id=end_id)
    run = make_run(4, 24, STEPS, seed=7)
    base = tiny_at(placement)
    ours = train(base, [run], [[record]], RECIPE).members[0]

    peft_model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32),
        peft.LoraConfig(
            r=4,
            lora_alpha=placement.lora_alpha(4),  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules=[module.rpartition(".")[2] for module in placement.modules],
            layers_to_transform=list(placement.layers),
            use_rslora=placement.use_rslora,
        ),
    )
    lora = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    assert len(lora) == 2 * len(placement.sites)
    for site, first in initial_As(base.site_shapes, 4, seed=7).items():
        (name,) = (n for n in lora if f".{site.layer}.{site.module}.lora_A." in n)
        lora[name].data = first.T.contiguous()
    optimizer = torch.optim.AdamW(lora.values(), lr=1.0, weight_decay=RECIPE.weight_decay)
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
        torch.nn.utils.clip_grad_norm_(lora.values(), RECIPE.clip_norm)
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


@pytest.mark.parametrize("placement", LINEAR.values(), ids=LINEAR)
def test_peft_loads_a_saved_adapter_with_the_same_logits(
    tiny_at: Callable[[Placement], BaseModel],
    tiny_folder: str,
    tmp_path: Path,
    placement: Placement,
) -> None:
    base = tiny_at(placement)
    record = random_record(16)
    trained = train(base, [make_run(2, 16, 20)], [[record]], RECIPE)
    weights, scale = trained.model.lora.weights(0), placement.scale(2)
    save_adapter(tmp_path, placement, weights, tiny_folder)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])

    def delta(site: Site, x: torch.Tensor) -> torch.Tensor:
        a, b = weights[site]
        return scale * (x @ a @ b)

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        bare = base.model(ids).logits
        with base.with_adapter(delta):
            ours = base.model(ids).logits
        theirs = peft.PeftModel.from_pretrained(model, str(tmp_path))(ids).logits
    # Logits are of order 10: this is fp32's own rounding.
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(bare, ours, atol=1e-3)


@pytest.mark.parametrize("layers", [(1,), (1, 3)], ids=["one layer", "two layers"])
def test_adapters_of_the_papers_block_round_trip(
    tiny_at: Callable[[Placement], BaseModel], tmp_path: Path, layers: tuple[int, ...]
) -> None:
    base = tiny_at(Placement(layers, ("mlp",)))
    trained = train(base, [make_run(3, 8, 5)], [[random_record(8)]], RECIPE)
    weights = trained.model.lora.weights(0)
    save_adapter(tmp_path, base.placements[0], weights, "base")
    adapter = read_adapter(tmp_path)
    assert isinstance(adapter, SiteAdapter) and adapter.placement == base.placements[0]
    assert adapter.weights.keys() == weights.keys()
    for site, own in weights.items():
        for mine, read in zip(own, adapter.weights[site], strict=True):
            torch.testing.assert_close(mine, read, rtol=0, atol=0)
