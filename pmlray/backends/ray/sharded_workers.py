"""Workers of one Ray Train job that shard one base between them (ZeRO-3), pack after pack.

Rank 0 asks for packs, as a single worker does, and reports their results; the others follow it.
Each rank loads its part of the base once. If a rank is lost, all of them end; Ray Train starts them
again, and rank 0 resumes its pack from the last checkpoint.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from pmlray.backends.ray.pack_task import missing_runs, spent_before
from pmlray.backends.ray.seen_store import train_in_store
from pmlray.backends.ray.worker_plan import WorkerPlan, let_go_of_pack, pack_stream
from pmlray.backends.store.file_store import FileStore
from pmlray.live_packs import Calibration, put_calibration, put_live
from pmlray.types import Pack

if TYPE_CHECKING:
    from pmlray.backends.deepspeed.ranks import Ranks
    from pmlray.backends.deepspeed.zero3_packs import ShardedPacks
    from pmlray.backends.mlflow.system_metrics import NodeSampler
    from pmlray.engine.runtime.checkpoints import Checkpoints

# Rank 0's last message, which ends the other ranks.
END = "end"


def train_sharded_packs(config: dict[str, Any]) -> None:
    """Run the train loop of a rank: measure packs until there are none."""
    plan, workers = config["plan"], config["workers"]
    train_in_store(plan, workers, partial(_train_rank, plan, workers, config["number"]))


def _train_rank(plan: WorkerPlan, workers: Any, number: int) -> None:
    import torch
    from ray.train import get_context

    from pmlray.backends.deepspeed.ranks import Ranks
    from pmlray.backends.deepspeed.zero3_packs import ShardedPacks
    from pmlray.backends.mlflow.system_metrics import node_sampler

    if not torch.cuda.is_available():
        torch.set_num_threads(plan.cpus)
    store, ranks = FileStore(Path(plan.store)), Ranks()
    tell = partial(put_live, store.folder)
    packs = ShardedPacks(plan.search, store, store.adapters, {"ray": ray.__version__}, ranks, tell)
    # One rank per node samples its load.
    sampler = node_sampler() if get_context().get_local_rank() == 0 else None
    if ranks.rank == 0:
        _lead(plan, packs, ranks, sampler, workers, number)
    else:
        _follow(packs, ranks, sampler, store.folder)


def _lead(
    plan: WorkerPlan,
    packs: ShardedPacks,
    ranks: Ranks,
    sampler: NodeSampler | None,
    workers: Any,
    number: int,
) -> None:
    from pmlray.backends.deepspeed.ranks import Leading
    from pmlray.backends.deepspeed.zero3_packs import prepare_pack
    from pmlray.backends.mlflow.system_metrics import sampled
    from pmlray.backends.ray.pack_worker import run_pack
    from pmlray.engine.adapters.peft_model import load_tokenizer

    search = plan.search
    # Loaded for the first pack, whose error it is when the base is refused.
    tokenizer = cache(partial(load_tokenizer, search))

    def measure(pack: Pack, store: FileStore, checkpoints: Checkpoints) -> float:
        if pack.calibrates:
            # Runs on a sharded base train one by one, so the first one shows the cost soon enough.
            put_calibration(store.folder, Calibration((), 0.0, 0.0))
            return 0.0
        # Errors of the pack itself are raised here, before it is sent to any other rank.
        spent = spent_before(store, pack)
        given = prepare_pack(search, pack, missing_runs(store, pack), tokenizer(), spent)
        ranks.say(given)
        return packs.measure(given, Leading(ranks, checkpoints))

    for pack in pack_stream(workers, number):
        if pack is None:
            # Without messages the other ranks would time out.
            ranks.say(None)
            continue
        with sampled(sampler, Path(plan.store), pack.round):
            seconds = run_pack(plan.work(pack), partial(measure, pack))
        let_go_of_pack()
        ray.get(workers.finished.remote(number, seconds))
    ranks.say(END)


def _follow(packs: ShardedPacks, ranks: Ranks, sampler: NodeSampler | None, store: Path) -> None:
    from pmlray.backends.deepspeed.ranks import Following
    from pmlray.backends.mlflow.system_metrics import sampled
    from pmlray.engine.runtime.checkpoints import AskedToLeave

    while (told := ranks.hear()) != END:
        if told is None:
            continue
        # Rank 0 alone reports that it was asked to leave.
        with suppress(AskedToLeave), sampled(sampler, store, told.pack.round):
            packs.measure(told, Following(ranks))
        let_go_of_pack()
