"""The engine on a GPU gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pmlray.config import Recipe
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.kernels.compiled_mlp import CompiledMLP
from pmlray.engine.model.base_model import BaseModel, freeze_base, load_base_model
from pmlray.engine.model.batches import MAX_MICRO_BATCH_TOKENS
from pmlray.engine.model.pull import pull_model
from pmlray.engine.training import cuda_graph_step
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
        base = load_base_model(
            TINY, source, None, "float32", (probe.to_placement(),), torch.device(device)
        )
        members = train(base, runs, records, Recipe(learning_rate=1e-2)).members
        found.append([members[i].step_losses for i in range(len(runs))])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
        assert on_cpu[-1] < on_cpu[0]


class Counted(cuda_graph_step.CudaGraphs):
    """Counts captures and replays."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.records = self.replays = 0

    def record(
        self, step: Callable[[], cuda_graph_step.StepFound]
    ) -> tuple[cuda_graph_step.StepFound, Callable[[], None]]:
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
    base = load_base_model(TINY, source, None, dtype, (probe.to_placement(),), device)  # type: ignore[arg-type]
    # One leaves at 20; another's two records of five lie in padded places.
    runs = [make_run(2, 12, 20), make_run(8, 40, 30, "memft_ot", 1)]
    runs += [make_run(4, 40, 30, "memft_sw", 2), make_run(4, 50, 30, "sft", 3)]
    records = [[random_record(run.point.seq_len, run.seed)] for run in runs[:3]]
    records.append([random_record(9 + i % 2, i) for i in range(5)])
    recipe = Recipe(learning_rate=1e-2, batch_size=2, dropout=dropout)
    found = []
    recorder = Counted(device)
    for way in (None, recorder):
        monkeypatch.setattr(cuda_graph_step, "recorder_for", lambda _device, way=way: way)
        members = train(base, runs, records, recipe).members
        found.append([members[i].step_losses for i in range(len(runs))])
    assert not caplog.records
    assert recorder.records == 2
    # Of each layout all steps but the first three.
    assert recorder.replays == 30 - 2 * cuda_graph_step.STEPS_BEFORE_CAPTURE
    for eager, replayed in zip(*found, strict=True):
        near = 1e-3 if dtype == "float32" else 2e-2
        assert replayed == pytest.approx(eager, rel=near, abs=near)


def test_a_graph_is_let_go_of_where_steps_wait_for_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pull_model(TINY)
    probe, source = Probe(placement="mlp", layer=1), resolve_model(TINY, None)
    base = load_base_model(
        TINY, source, None, "float32", (probe.to_placement(),), torch.device("cuda")
    )
    original = cuda_graph_step.PackStep.__call__

    def waiting(self: cuda_graph_step.PackStep, *args: Any) -> cuda_graph_step.StepFound:
        found = original(self, *args)
        found.loss_S.sum().item()
        return found

    monkeypatch.setattr(cuda_graph_step.PackStep, "__call__", waiting)
    trained = train(base, [make_run(4, 20, 12)], [[random_record(20)]], Recipe(learning_rate=1e-2))
    assert trained.members[0].step_losses[-1] < trained.members[0].step_losses[0]
    assert [r.getMessage() for r in caplog.records if "not captured" in r.getMessage()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlps_above_the_adapter_are_compiled(
    dtype: Literal["float32", "bfloat16"], caplog: pytest.LogCaptureFixture
) -> None:
    pull_model(TINY)
    probe, source = Probe(placement="mlp", layer=1), resolve_model(TINY, None)
    base = load_base_model(TINY, source, None, dtype, (probe.to_placement(),), torch.device("cuda"))
    compiled = [isinstance(layer.mlp, CompiledMLP) for layer in base.model.model.layers]
    assert compiled == [False, False, True, True]
    assert not caplog.records


def peak_bytes(base: BaseModel, n_records: int) -> int:
    """The most that one adapter's steps over so many records held beside what lasts."""
    records = [random_record(900, i) for i in range(n_records)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(base, [make_run(4, 900, 3)], [records], Recipe(learning_rate=1e-2, batch_size=n_records))
    lasting = sum(len(r.prompt_ids) + len(r.target_ids) for r in records) * 4
    lasting *= base.model.config.hidden_size + next(iter(base.site_shapes.values()))[0]
    return torch.cuda.max_memory_allocated() - before - lasting


def test_memory_is_that_of_a_micro_batch() -> None:
    pull_model(TINY)
    probe, source = Probe(placement="mlp", layer=1), resolve_model(TINY, None)
    base = load_base_model(
        TINY, source, None, "float32", (probe.to_placement(),), torch.device("cuda")
    )
    # Of one micro-batch, and of four.
    assert 16 * 904 <= MAX_MICRO_BATCH_TOKENS < 20 * 904
    assert peak_bytes(base, 64) < 1.3 * peak_bytes(base, 16)


@pytest.mark.parametrize("tied", [False, True])
def test_what_steps_do_not_need_is_in_host_memory(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad():
        expected = model(ids).logits
    base = freeze_base(model, None, (Probe(layer=1).to_placement(),), torch.device("cuda"))
    body = model.model
    hosted = [*body.layers[:2].parameters()]
    assert {p.device.type for p in hosted} == {"cpu"}
    assert body.embed_tokens.weight.device.type == ("cuda" if tied else "cpu")
    prefix = base.run_prefix(ids.cuda())
    assert prefix.hidden_BTD.is_cuda
    assert {p.device.type for p in hosted} == {"cpu"}
    with base.with_adapter(lambda _site, x: torch.zeros_like(x)), torch.no_grad():
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        found = model(ids.cuda()).logits
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    assert {p.device.type for p in hosted} == {"cpu"}
