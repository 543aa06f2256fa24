"""A pack of one placement, trained by the engine in this process, as rows of a table."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from pmlray.config.bases.models import SMOLLM2
from pmlray.config.prepared_search import PreparedSearch, prepare_spec
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import SearchSpec
from pmlray.engine.ready_pack import ready_pack
from pmlray.engine.runtime.checkpoints import Checkpoints
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.metrics import TrainedMember
from pmlray.engine.training.step import TorchStepper
from pmlray.law.validation.convergence import Certificate, certify
from pmlray.types import DesignPoint, Pack
from scripts.bench.placements.plan import CHECK_STEPS, LENGTHS, STEPS, Place, Run
from scripts.bench.placements.table import CURVE_STEPS, Row

SEED = 0
CHECKPOINT_SECONDS = 60.0
# All runs take all of their steps.
RECIPE = Recipe(stop_loss=0.0, stop_gain=0.0)


def prepared(place: Place) -> PreparedSearch:
    """Return a search of random tokens with adapters at a placement."""
    spec = {
        "name": "placements",
        "task": {"kind": "long_context", "prompt_format": "plain"},
        "model": {"id": SMOLLM2, "dtype": "bfloat16"},
        "adapter": {"target_modules": list(place.modules), "layers": list(place.layers)},
        "space": {
            "lora_rank": list(place.ranks),
            "seq_len": sorted({length for lengths in LENGTHS for length in lengths}),
            "train_steps": [STEPS, CHECK_STEPS],
        },
        "recipe": RECIPE.model_dump(),
        "design": {"n_initial": 1},
        "budget": {"gpu_seconds": 1.0},
    }
    return prepare_spec(SearchSpec.model_validate_json(json.dumps(spec)), Path())


def train(runs: Sequence[Run], checkpoints: Path) -> list[Row]:
    """Train runs of one placement together; return their rows in the same order.

    checkpoints: folder from which the same runs go on where they were broken off.
    """
    search = prepared(runs[0].place)
    planned = [
        search.plan_run(
            DesignPoint(run.cell.rank, run.cell.length, run.cell.steps),
            *("sft", run.cell.text, SEED, "law", run.rate),
        )
        for run in runs
    ]
    ready = ready_pack(search, Pack(0, tuple(planned)), None)
    kept = checkpoints / planned[0].run_key
    ended: list[TrainedMember] = []
    train_pack(
        ready.model, TorchStepper(ready.model, ready.optimizer), ready.optimizer, ready.members,
        search.spec.recipe, rules=search.spec.memft_rules(), on_finished=ended.extend,
        checkpoints=Checkpoints(kept, planned, CHECKPOINT_SECONDS, lambda: False), room=ready.room,
    )  # fmt: skip
    shutil.rmtree(kept)
    by_index = {member.index: member for member in ended}
    per_rank = search.params_per_rank
    return [_row(run, by_index[i], run.cell.rank * per_rank) for i, run in enumerate(runs)]


def _row(run: Run, member: TrainedMember, adapter_params: int) -> Row:
    base, final = member.curve[0][1], member.scores.mean_nll
    recall = member.scores.recall
    certified = _certificate(member, run.cell.steps)
    curve = dict(member.curve)
    return Row(
        placement=run.place.name,
        adapter_params=adapter_params,
        rank=run.cell.rank,
        length=run.cell.length,
        steps=run.cell.steps,
        sequence=run.cell.text,
        seed=SEED,
        learning_rate=run.rate,
        base_loss_nats=base,
        final_loss_nats=final if math.isfinite(final) else math.inf,
        token_recall=recall.token,
        stubborn_tokens=recall.n_stubborn,
        gpu_seconds=member.gpu_seconds,
        status=certified.status,
        fall_if_doubled_nats=certified.slope,
        grad_norm=member.grad_norm,
        curve=tuple(curve[step] for step in CURVE_STEPS),
        threads=torch.get_num_threads(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _certificate(member: TrainedMember, train_steps: int) -> Certificate:
    return certify(
        member.curve,
        train_steps,
        schedule=RECIPE.schedule,
        warmup_steps=RECIPE.warmup_steps,
        decay_share=RECIPE.decay_share,
        stop_loss=RECIPE.stop_loss,
        grad_norm=member.grad_norm,
    )
