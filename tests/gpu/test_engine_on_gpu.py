"""The engine on a GPU gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.base_model import load_base_model
from pmlray.engine.pull import pull_model
from tests.unit.engine.conftest import make_run, random_record, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_losses_on_the_gpu_are_those_on_the_cpu(placement: str) -> None:
    pull_model(TINY)
    probe = Probe(placement=placement, layer=1)  # type: ignore[arg-type]
    runs = [make_run(2, 12, 30), make_run(8, 40, 30, "memft_ot", 1)]
    runs.append(make_run(4, 40, 20, "memft_sw", 2))
    records = [[random_record(run.point.seq_len, run.seed)] for run in runs]
    found = []
    for device in ("cpu", "cuda"):
        source = resolve_model(TINY, None)
        base = load_base_model(TINY, source, None, "float32", probe, torch.device(device))
        members = train(base, runs, records, Recipe(learning_rate=1e-2)).members
        found.append([members[i].step_losses for i in range(len(runs))])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
        assert on_cpu[-1] < on_cpu[0]
