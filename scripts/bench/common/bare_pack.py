"""One pack trained by the bare loop, without DeepSpeed or Ray: what the engine alone does."""

from __future__ import annotations

from collections.abc import Sequence

from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import CachedRecord
from pmlray.engine.scheduling.members import Admission, make_members
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.metrics import TrainedMember
from pmlray.engine.training.step import TorchStepper
from pmlray.types import MemftRules, PlannedRun, Room


def train_bare(
    base: BaseModel,
    runs: Sequence[PlannedRun],
    rows: Sequence[Sequence[CachedRecord]],
    recipe: Recipe,
    room: Room | None = None,
) -> list[TrainedMember]:
    """The trained members in the order of their runs.

    rows: each run's records. room: of a step; None where it holds all runs.
    """
    members = make_members(runs, rows)
    slots = Admission(members, recipe, room).most_at_once
    lora = PackedLora(base, [r.point.lora_rank for r in runs], [r.seed for r in runs], slots)
    model = AdaptedModel(base, lora)
    optimizer = PackedAdamW(
        lora.param_groups(), clip_norm=recipe.clip_norm, weight_decay=recipe.weight_decay
    )
    ended: list[TrainedMember] = []
    train_pack(
        model, TorchStepper(model, optimizer), optimizer, members, recipe,
        rules=MemftRules(), on_finished=ended.extend, room=room,
    )  # fmt: skip
    return sorted(ended, key=lambda member: member.index)
