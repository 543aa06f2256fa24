"""The DeepSpeed engine changes nothing: the same losses as the bare loop, step by step; nor does a
step that is recorded through it and replayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, torch
from pmlray.backends.deepspeed.stepper import be_one_process, deepspeed_stepper
from pmlray.config import Recipe
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.adapters.placement import Placement
from pmlray.config.search_spec import Probe
from pmlray.engine.training import cuda_graph_step
from pmlray.engine.model import head
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.model.base_model import load_base_model
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.step import TorchStepper
from pmlray.engine.scheduling.members import make_members
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.types import MemftRules
from tests.integration.engine.recording import Recorded
from tests.unit.engine.conftest import make_run, random_record

be_one_process()
assert os.environ["LOCAL_RANK"] == "0"
source = resolve_model(TINY, None)
where = {None: Probe(layer=1).to_placement(), "q": Placement((2, 3), ("self_attn.q_proj",))}
base = load_base_model(TINY, source, None, "float32", tuple(where.values()), torch.device("cpu"))
runs = [make_run(2, 12, 25), make_run(8, 30, 25, "memft_ot", 1), make_run(4, 30, 16, "memft_sw", 2)]
runs.append(make_run(3, 12, 16, "sft", 3, 0, "q"))
records = [[random_record(r.point.seq_len, r.seed)] for r in runs]
recipe = Recipe(learning_rate=1e-2)
losses, recorder, engines = {}, Recorded(), []
for name, make in (
    ("bare", TorchStepper),
    ("deepspeed", deepspeed_stepper()),
    ("replayed", deepspeed_stepper(engines.append)),
):
    if name == "replayed":
        cuda_graph_step.recorder_for = lambda device: recorder
        head._in_caches = lambda values: False
    members = make_members(runs, [build_prefix_cache(base, own) for own in records])
    placements = [where[r.point.placement] for r in runs]
    ranks, seeds = [r.point.lora_rank for r in runs], [r.seed for r in runs]
    lora = PackedLora(base, ranks, seeds, placements=placements)
    model = AdaptedModel(base, lora)
    optimizer = PackedAdamW(lora.param_groups(), clip_norm=1.0, weight_decay=0.0)
    done = {}
    train_pack(model, make(model, optimizer), optimizer, members, recipe, rules=MemftRules(),
               on_finished=lambda ended: done.update({m.index: m.step_losses for m in ended}))
    losses[name] = [done[i] for i in range(len(runs))]
print("RESULT" + json.dumps([losses, recorder.replays, engines[0].global_steps]))
"""


def test_deepspeed_equals_the_bare_loop() -> None:
    # As where a launcher has numbered this process for devices of its own.
    environment = {**os.environ, "LOCAL_RANK": "3"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    losses, replays, counted = json.loads(line.removeprefix("RESULT"))
    for i, bare in enumerate(losses["bare"]):
        assert len(bare) in (16, 25)
        for name in ("deepspeed", "replayed"):
            assert losses[name][i] == pytest.approx(bare, rel=1e-6)
    # Both layouts, of 16 and of 9 steps, but for the first three of each.
    assert (replays, counted) == (19, 25)
