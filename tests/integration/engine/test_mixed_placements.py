"""Adapters of several placements in one pack are what each is alone, and what PEFT makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pmlray.config import Recipe
from pmlray.config.adapters.placement import DOWN_PROJ, MLP_BLOCK, Placement, Site
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.adapters.peft_io import PeftNames, save_adapter
from pmlray.engine.evaluation.scores import Decoding, decode_exactly
from pmlray.engine.model.base_model import BaseModel, freeze_base
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.memory import Record
from pmlray.types import MemftRules, Room
from tests.families import tiny_model
from tests.integration.engine.packs.test_checkpoints import Cut, outcome
from tests.mixed_packs import PACKS, RECIPE, WHERE, peft_losses, runs_of, trained
from tests.unit.engine.conftest import make_run, random_record

TinyAt = Callable[..., BaseModel]


def close(found: AdapterWeights, wanted: AdapterWeights) -> None:
    assert list(found) == list(wanted)
    for site, pair in wanted.items():
        for mine, own in zip(found[site], pair, strict=True):
            # A weight that hardly moves is divided by the root of a square that is rounding.
            torch.testing.assert_close(mine, own, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("names", PACKS.values(), ids=PACKS)
def test_packed_equals_separate(tiny_at: TinyAt, names: Sequence[str], dropout: float) -> None:
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    runs = runs_of(names)
    together = trained(tiny_at(*(WHERE[name] for name in names)), runs, recipe)
    for i, run in enumerate(runs):
        alone = trained(tiny_at(WHERE[run.point.placement or ""]), [run], recipe)
        losses = alone.members[0].step_losses
        assert together.members[i].step_losses == pytest.approx(losses, rel=1e-5), run
        assert together.members[i].grad_norm == pytest.approx(alone.members[0].grad_norm, rel=1e-4)
        assert losses[-1] < losses[0] - 0.05
        close(together.model.lora.weights(i), alone.model.lora.weights(0))


def test_the_prefix_reaches_up_to_the_lowest_adapted_layer(tiny_at: TinyAt) -> None:
    depths, kept = {}, {}
    for name, names in PACKS.items():
        base = tiny_at(*(WHERE[n] for n in names))
        depths[name] = len(base.prefix) - 1
        kept[name] = [site.module for site in base.kept_sites]
    assert depths == {
        "from the lowest layer": 0,
        "one kept site": 3,
        "two kept sites": 3,
        "one layer in many ways": 1,
    }
    assert kept == {
        "from the lowest layer": [],
        "one kept site": [MLP_BLOCK],
        "two kept sites": [MLP_BLOCK, DOWN_PROJ],
        "one layer in many ways": [],
    }


def test_no_adapter_has_weights_at_the_sites_of_another(tiny_at: TinyAt) -> None:
    names = PACKS["from the lowest layer"]
    base = tiny_at(*(WHERE[name] for name in names))
    runs = runs_of(names)
    lora = trained(base, runs, RECIPE).model.lora
    for i, run in enumerate(runs):
        assert set(lora.weights(i)) == set(WHERE[run.point.placement or ""].sites)
    assert sum(p.numel() for p in lora.parameters()) == sum(
        2 * max(r.point.lora_rank for r in runs if r.point.placement == name)
        * len(WHERE[name].layers)
        * sum(sum(base.site_shapes[site]) for site in WHERE[name].sites[: len(WHERE[name].modules)])
        for name in names
    )  # fmt: skip


@pytest.mark.parametrize("names", [("everywhere", "q and v", "down"), ("down", "high q")])
def test_a_pack_equals_peft_with_adamw(
    tiny_at: TinyAt, tiny_folder: str, names: Sequence[str]
) -> None:
    runs = [replace(run, method="sft") for run in runs_of(names)]
    base = tiny_at(*(WHERE[name] for name in names))
    ours = trained(base, runs, RECIPE)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for i, run in enumerate(runs):
        record = random_record(run.point.seq_len, run.sequence_id)
        theirs = peft_losses(
            plain, run, record, RECIPE, PeftNames(), WHERE[run.point.placement or ""]
        )
        assert ours.members[i].step_losses == pytest.approx(theirs, rel=1e-5)
        assert theirs[-1] < theirs[0] - 0.05


def full_forward(
    base: BaseModel, record: Record, scale: float, weights: AdapterWeights
) -> torch.Tensor:
    """Token losses of a full forward with LoRA written out at the adapter's own sites."""

    def delta(site: Site, x: torch.Tensor) -> torch.Tensor | None:
        if site not in weights:
            return None
        a, b = weights[site]
        return scale * (x @ a @ b)

    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad(), base.with_adapter(delta):
        logits = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
    return torch.nn.functional.cross_entropy(
        logits, ids[0, len(record.prompt_ids) :], reduction="none"
    )


@pytest.mark.parametrize("names", PACKS.values(), ids=PACKS)
def test_cached_equals_a_full_forward_and_what_is_decoded(
    tiny_at: TinyAt, names: Sequence[str]
) -> None:
    base = tiny_at(*(WHERE[name] for name in names))
    runs = [make_run(8, 8, 60, "sft", i, i, name) for i, name in enumerate(names)]
    runs += [make_run(1, 30, 3, "sft", i, 9, name) for i, name in enumerate(names)]
    found = trained(base, runs, RECIPE)
    decodings = []
    for i, run in enumerate(runs):
        record = random_record(run.point.seq_len, run.sequence_id)
        weights = found.model.lora.weights(i)
        scale = WHERE[run.point.placement or ""].scale(run.point.lora_rank)
        alone = tiny_at(WHERE[run.point.placement or ""])
        for where in (base, alone):
            nll = full_forward(where, record, scale, weights)
            assert found.members[i].scores.nll[0] == pytest.approx(nll.tolist(), rel=1e-4, abs=1e-5)
        decodings.append(Decoding(weights, scale, (record,)))
    exact = [found.members[i].scores.recall.exact == 1.0 for i in range(len(runs))]
    assert True in exact and False in exact
    assert decode_exactly(base, decodings, 60) == tuple(exact)


@pytest.mark.parametrize("room", [None, Room(3, 60)], ids=["at once", "in turns"])
def test_a_pack_cut_off_ends_bit_for_bit_as_undisturbed(
    tiny_at: TinyAt, tmp_path: Path, room: Room | None
) -> None:
    names = PACKS["from the lowest layer"]
    base = tiny_at(*(WHERE[name] for name in names))
    rules = MemftRules(margin=0.6, recheck_epochs=2)
    runs = [replace(run, method=method) for run, method in zip(
        runs_of(names), ("sft", "memft_ot", "memft_sw", "memft_rd", "memft_fw", *["sft"] * 3),
        strict=True,
    )]  # fmt: skip
    records = [[random_record(6, sequence_id=i) for i in range(3)]] * len(runs)
    recipe = Recipe(learning_rate=2e-2, batch_size=2, dropout=0.1, warmup_steps=4, decay_share=0.2)
    shared = {"rules": rules, "room": room}
    undisturbed = outcome(trained(base, runs, recipe, records, **shared).members)
    found: dict = {}
    for at in (3, 9, 14, 1000):
        keeper = Checkpoints(tmp_path, runs, every=1e9, leave=Cut(at))
        try:
            trained(base, runs, recipe, records, checkpoints=keeper, also=found.update, **shared)
        except AskedToLeave:
            continue
        break
    assert outcome(found) == undisturbed


def test_runs_in_turns_are_what_they_are_at_once(tiny_at: TinyAt) -> None:
    names = PACKS["one kept site"]
    base = tiny_at(*(WHERE[name] for name in names))
    runs = runs_of(names)
    at_once = trained(base, runs, RECIPE)
    # A placement's two runs share one slot.
    in_turns = trained(base, runs, RECIPE, room=Room(1, 40))
    assert in_turns.model.lora.n_slots == len(names)
    for i in range(len(runs)):
        losses = at_once.members[i].step_losses
        assert in_turns.members[i].step_losses == pytest.approx(losses, rel=1e-5)


def test_an_early_end_and_a_shared_trunk_are_each_placements_own(tiny_at: TinyAt) -> None:
    names = ("everywhere", "down")
    recipe = RECIPE.model_copy(update={"stop_loss": 1.5})
    runs = [make_run(4, 8, steps, "sft", 0, 0, n) for steps in (30, 80) for n in names]
    together = trained(tiny_at(*map(WHERE.__getitem__, names)), runs, recipe)
    for name in names:
        own = [i for i, run in enumerate(runs) if run.point.placement == name]
        alone = trained(tiny_at(WHERE[name]), [runs[i] for i in own], recipe)
        for j, i in enumerate(own):
            losses = alone.members[j].step_losses
            assert together.members[i].step_losses == pytest.approx(losses, rel=1e-5)
            assert together.members[i].charged_steps == alone.members[j].charged_steps
    steps = [len(together.members[i].step_losses) for i in range(len(runs))]
    charged = [together.members[i].charged_steps for i in range(len(runs))]
    # The longer runs end early, and the shorter ones share their steps.
    assert max(steps) < 80 and len(set(steps)) > 2
    assert all(own < taken for own, taken in zip(charged, steps, strict=True))


GENERAL: Mapping[str, Placement] = {
    "all": Placement((0, 1), ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    "one": Placement((1,), ("mlp.c_proj",), alpha_per_rank=2.0),
    "block": Placement((0,), (MLP_BLOCK,)),
}


def test_a_base_of_any_family_packs_them_too(tmp_path: Path) -> None:
    plain = tiny_model("gpt2")
    cpu, vocab = torch.device("cpu"), plain.config.vocab_size
    base = freeze_base(copy.deepcopy(plain), None, tuple(GENERAL.values()), cpu)
    runs = [make_run(2 + i, 9 + 4 * (i % 2), 12, "sft", i, i, n) for i, n in enumerate(GENERAL)]
    own = [[random_record(r.point.seq_len, r.sequence_id, vocab=vocab)] for r in runs]
    for dropout in (0.0, 0.1):
        recipe = RECIPE.model_copy(update={"dropout": dropout})
        together = trained(base, runs, recipe, own, GENERAL)
        for i, run in enumerate(runs):
            placement = GENERAL[run.point.placement or ""]
            separate = freeze_base(copy.deepcopy(plain), None, (placement,), cpu)
            alone = trained(separate, [run], recipe, [own[i]], GENERAL)
            losses = alone.members[0].step_losses
            assert together.members[i].step_losses == pytest.approx(losses, rel=1e-5)
            if placement.is_block or dropout:
                continue
            names = PeftNames.of(base, placement)
            assert losses == pytest.approx(
                peft_losses(plain, run, own[i][0], recipe, names, placement), rel=1e-5
            )
            weights, folder = together.model.lora.weights(i), tmp_path / str(i)
            save_adapter(folder, placement, weights, "x", names=names)
            model = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(folder))
            ids = torch.tensor([[*own[i][0].prompt_ids, *own[i][0].target_ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(own[i][0].prompt_ids) - 1 : -1]
            nll = torch.nn.functional.cross_entropy(
                logits, ids[0, len(own[i][0].prompt_ids) :], reduction="none"
            )
            found = together.members[i].scores.nll[0]
            assert found == pytest.approx(nll.tolist(), rel=1e-4, abs=1e-5)
