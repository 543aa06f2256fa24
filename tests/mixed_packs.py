"""Packs of adapters at several places of the tiny model, and the same runs by PEFT alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import peft
import torch

from pmlray.config import Recipe
from pmlray.config.adapters.placement import DOWN_PROJ, MLP_BLOCK, Placement
from pmlray.engine.adapters.packed_factors import initial_As
from pmlray.engine.adapters.peft_io import PeftNames, peft_settings
from pmlray.engine.model.base_model import BaseModel
from pmlray.memory import Record
from pmlray.types import PlannedRun
from tests.placements import PLACEMENTS
from tests.unit.engine.conftest import Trained, make_run, random_record, train

RECIPE = Recipe(learning_rate=1e-2, weight_decay=0.01)
WHERE = {
    "everywhere": PLACEMENTS["all-linear everywhere"],
    "q and v": PLACEMENTS["q and v of two layers"],
    "block": Placement((2,), (MLP_BLOCK,)),
    "down": Placement((2,), (DOWN_PROJ,), alpha_per_rank=2.0),
    "blocks": PLACEMENTS["the paper's block twice"],
    "high down": Placement((3,), (DOWN_PROJ,), alpha=4.0, use_rslora=True),
    "high q": Placement((3,), ("self_attn.q_proj", "mlp.up_proj")),
}
# Packs, by what is special about each: the prefix below all of them, up to one kept site with
# others above, up to two kept sites of one layer, and to a kept site whose layer others adapt too.
PACKS = {
    "from the lowest layer": ("everywhere", "q and v", "block", "down"),
    "one kept site": ("block", "high q", "high down"),
    "two kept sites": ("down", "block", "high down"),
    "one layer in many ways": ("block", "blocks", "down"),
}
METHODS = ("sft", "memft_ot", "memft_sw", "sft")


def runs_of(names: Sequence[str]) -> list[PlannedRun]:
    """Mixed ranks, lengths, methods and budgets, two runs of each placement that alternate."""
    return [
        make_run(2 + i, 12 + 8 * ((i + j) % 2), 10 + 3 * j, METHODS[i], i + 2 * j, i, name)
        for j in (0, 1)
        for i, name in enumerate(names)
    ]


def trained(
    base: BaseModel,
    runs: Sequence[PlannedRun],
    recipe: Recipe,
    records: Sequence[Sequence[Record]] | None = None,
    where: Mapping[str, Placement] = WHERE,
    **more: object,
) -> Trained:
    """Train a pack whose runs name their placements."""
    own = [[random_record(r.point.seq_len, r.sequence_id)] for r in runs]
    at = [where[r.point.placement or ""] for r in runs]
    return train(base, runs, records or own, recipe, placements=at, **more)  # type: ignore[arg-type]


def peft_losses(
    plain: torch.nn.Module,
    run: PlannedRun,
    record: Record,
    recipe: Recipe,
    names: PeftNames,
    placement: Placement,
) -> list[float]:
    """The losses of plain PEFT under torch's AdamW."""
    rank, steps = run.point.lora_rank, run.point.train_steps
    settings = peft_settings(placement, rank, names)
    model = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**settings))  # type: ignore[arg-type]
    lora = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(lora) == 2 * len(placement.sites)
    widths = {
        site: (next(p for n, p in lora.items() if names.of_site(site) + ".lora_A" in n).shape[1], 0)
        for site in placement.sites
    }
    for site, first in initial_As(widths, rank, run.seed).items():
        (name,) = (n for n in lora if f"{names.of_site(site)}.lora_A." in n)
        lora[name].data = first.T.contiguous()
    optimizer = torch.optim.AdamW(lora.values(), lr=1.0, weight_decay=recipe.weight_decay)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    labels = ids.clone()
    labels[0, : len(record.prompt_ids)] = -100
    losses = []
    for step in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.values(), recipe.clip_norm)
        optimizer.param_groups[0]["lr"] = recipe.rate_at(step, steps)
        optimizer.step()
    return losses
