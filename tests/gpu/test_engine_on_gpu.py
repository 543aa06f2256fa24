"""The engine on a GPU gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine import captured
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


class Counted(captured.CudaGraphs):
    """Counts captures and replays."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.records = self.replays = 0

    def record(
        self, step: Callable[[], captured.StepFound]
    ) -> tuple[captured.StepFound, Callable[[], None]]:
        found, replay = super().record(step)
        self.records += 1

        def counted() -> None:
            self.replays += 1
            replay()

        return found, counted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_captured_steps_are_those_without_a_graph(
    dtype: str, dropout: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pull_model(TINY)
    device, probe = torch.device("cuda"), Probe(placement="mlp", layer=1)
    source = resolve_model(TINY, None)
    base = load_base_model(TINY, source, None, dtype, probe, device)  # type: ignore[arg-type]
    # One leaves at 20; another's two records of five lie in padded places.
    runs = [make_run(2, 12, 20), make_run(8, 40, 30, "memft_ot", 1)]
    runs += [make_run(4, 40, 30, "memft_sw", 2), make_run(4, 50, 30, "sft", 3)]
    records = [[random_record(run.point.seq_len, run.seed)] for run in runs[:3]]
    records.append([random_record(9 + i % 2, i) for i in range(5)])
    recipe = Recipe(learning_rate=1e-2, batch_size=2, dropout=dropout)
    found = []
    recorder = Counted(device)
    for way in (None, recorder):
        monkeypatch.setattr(captured, "recorder_for", lambda _device, way=way: way)
        members = train(base, runs, records, recipe).members
        found.append([members[i].step_losses for i in range(len(runs))])
    assert not caplog.records
    assert recorder.records == 2
    # Of each layout all steps but the first three.
    assert recorder.replays == 30 - 2 * captured.STEPS_BEFORE_CAPTURE
    for eager, replayed in zip(*found, strict=True):
        near = 1e-3 if dtype == "float32" else 2e-2
        assert replayed == pytest.approx(eager, rel=near, abs=near)


def test_a_graph_is_let_go_of_where_steps_wait_for_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pull_model(TINY)
    probe, source = Probe(placement="mlp", layer=1), resolve_model(TINY, None)
    base = load_base_model(TINY, source, None, "float32", probe, torch.device("cuda"))
    original = captured.PackStep.__call__

    def waiting(self: captured.PackStep, *args: Any) -> captured.StepFound:
        found = original(self, *args)
        found.loss_S.sum().item()
        return found

    monkeypatch.setattr(captured.PackStep, "__call__", waiting)
    trained = train(base, [make_run(4, 20, 12)], [[random_record(20)]], Recipe(learning_rate=1e-2))
    assert trained.members[0].step_losses[-1] < trained.members[0].step_losses[0]
    assert [r.getMessage() for r in caplog.records if "not captured" in r.getMessage()]
