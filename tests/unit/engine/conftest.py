"""Shared pieces of the engine's tests: the tiny model and packs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.model.pull import pull_model
from pmlray.engine.runtime.checkpoints import Checkpoints
from pmlray.engine.scheduling.members import Admission, make_members
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.metrics import TrainedMember
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import Record
from pmlray.types import DesignPoint, MemftRules, Method, PlannedRun, Room


def make_run(
    rank: int,
    length: int,
    steps: int,
    method: Method = "sft",
    seed: int = 0,
    sequence_id: int = 0,
    placement: str | None = None,
) -> PlannedRun:
    key = f"{method}-{rank}-{length}-{steps}-{seed}-{sequence_id}"
    point = DesignPoint(rank, length, steps, placement)
    return PlannedRun(point, method, sequence_id, seed, "law", key)


def random_record(length: int, sequence_id: int = 0, prompt: int = 5, vocab: int = 258) -> Record:
    generator = torch.Generator().manual_seed(100 + sequence_id)
    ids = torch.randint(2, vocab, (prompt + length,), generator=generator).tolist()
    return Record(tuple(ids[:prompt]), tuple(ids[prompt:]))


@dataclass(frozen=True)
class Trained:
    model: AdaptedModel
    members: dict[int, TrainedMember]


def train(
    base: BaseModel,
    runs: Sequence[PlannedRun],
    records: Sequence[Sequence[Record]],
    recipe: Recipe,
    rules: MemftRules | None = None,
    checkpoints: Checkpoints | None = None,
    also: Callable[[dict[int, TrainedMember]], None] = lambda ended: None,
    room: Room | None = None,
    placements: Sequence[Placement] | None = None,
    start: AdapterWeights | None = None,
) -> Trained:
    cached = [build_prefix_cache(base, own) for own in records]
    members = make_members(runs, cached, [[record.repeats for record in own] for own in records])
    slots = Admission(members, recipe, room).most_at_once
    ranks, seeds = [r.point.lora_rank for r in runs], [r.seed for r in runs]
    lora = PackedLora(base, ranks, seeds, slots, placements, start)
    model = AdaptedModel(base, lora)
    optimizer = PackedAdamW(
        lora.param_groups(), clip_norm=recipe.clip_norm, weight_decay=recipe.weight_decay
    )
    done: dict[int, TrainedMember] = {}

    def keep(ended: Sequence[TrainedMember]) -> None:
        done.update({m.index: m for m in ended})
        also({m.index: m for m in ended})

    train_pack(
        model, TorchStepper(model, optimizer), optimizer, members, recipe,
        rules=rules or MemftRules(),
        on_finished=keep, checkpoints=checkpoints, room=room,
    )  # fmt: skip
    return Trained(model, done)


@pytest.fixture(scope="session")
def tiny_folder() -> str:
    return str(pull_model(TINY))


@pytest.fixture(scope="session")
def fresh_tiny(tiny_folder: str) -> Callable[..., BaseModel]:
    """Loads the tiny model anew, for tests that change it, as PEFT does."""

    def load(placement: str = "mlp", layer: int = 2) -> BaseModel:
        probe = Probe(placement=placement, layer=layer)  # type: ignore[arg-type]
        source = resolve_model(TINY, None)
        return load_base_model(
            TINY, source, None, "float32", (probe.to_placement(),), torch.device("cpu")
        )

    return load


@pytest.fixture(scope="session")
def tiny_at(tiny_folder: str) -> Callable[..., BaseModel]:
    """The tiny model with adapters at any sites, the same for all tests of these placements."""

    def load(*placements: Placement) -> BaseModel:
        source = resolve_model(TINY, None)
        return load_base_model(TINY, source, None, "float32", placements, torch.device("cpu"))

    return cache(load)


@pytest.fixture(scope="session")
def tiny(fresh_tiny: Callable[..., BaseModel]) -> Callable[..., BaseModel]:
    """The tiny model, frozen and the same for all tests."""
    return cache(fresh_tiny)
