"""MLPs by torch.compile give the steps that they give without, at any length by one compilation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.kernels.compiled_mlp import CompiledMLP, compile_mlps
from pmlray.engine.model import base_model
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.pull import pull_model
from tests.unit.engine.conftest import make_run, random_record, train

pytestmark = pytest.mark.slow

# Layers 2 and 3 lie above the adapter; one run leaves at 8, so that steps are of two lengths.
RUNS = [make_run(2, 12, 8), make_run(4, 40, 14, "memft_ot", 1)]
RECORDS = [[random_record(run.point.seq_len, run.seed)] for run in RUNS]


@pytest.fixture(autouse=True)
def as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases in bfloat16 are computed in it, also by a CPU that is slow at it."""
    monkeypatch.setattr(base_model, "multiplies_bfloat16", lambda _device: True)


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which("g++") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no g++ to compile for a CPU with")
        pytest.skip("compiling for a CPU needs g++")


def load(dtype: Literal["float32", "bfloat16"]) -> BaseModel:
    pull_model(TINY)
    source = resolve_model(TINY, None)
    return load_base_model(
        TINY, source, None, dtype, (Probe(layer=1).to_placement(),), torch.device("cpu")
    )


def losses(base: BaseModel) -> list[list[float]]:
    members = train(base, RUNS, RECORDS, Recipe(learning_rate=1e-2)).members
    return [list(members[i].step_losses) for i in range(len(RUNS))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_are_those_without_and_are_compiled_once(
    dtype: Literal["float32", "bfloat16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    plain = losses(load(dtype))
    base = load(dtype)
    layers = base.model.model.layers
    assert compile_mlps(layers[2:], base.model.config.hidden_size)
    calls = [_counted(layer.mlp, monkeypatch) for layer in layers[2:]]
    with torch.compiler.set_stance("fail_on_recompile"):
        found = losses(base)
    # A step is one micro-batch, through each of the layers.
    assert [len(lengths) for lengths in calls] == [14, 14]
    assert len(set(calls[0])) == 2
    near = 1e-5 if dtype == "float32" else 2e-2
    for mine, other in zip(found, plain, strict=True):
        assert mine == pytest.approx(other, rel=near)
        assert mine[-1] < 0.98 * mine[0]


def test_rounded_as_they_are_without() -> None:
    torch.compiler.reset()
    base = load("bfloat16")
    plain, layer = base.model.model.layers[2].mlp, base.model.model.layers[2]
    assert compile_mlps([layer], base.model.config.hidden_size)
    drawn = torch.randn(1, 33, base.model.config.hidden_size).bfloat16()
    found = [_both_ways(mlp, drawn) for mlp in (layer.mlp, plain)]
    assert isinstance(layer.mlp, CompiledMLP)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2**-6, atol=2**-7)


def _both_ways(mlp: torch.nn.Module, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = drawn.clone().requires_grad_()
    output = mlp(hidden)
    (gradient,) = torch.autograd.grad(output, hidden, torch.ones_like(output))
    return output.detach(), gradient


def _counted(mlp: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of positions that a compiled MLP is called for from now on."""
    lengths: list[int] = []
    call: Callable[..., torch.Tensor] = mlp._compiled

    def counted(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        lengths.append(hidden.shape[1])
        return call(module, hidden)

    monkeypatch.setattr(mlp, "_compiled", counted)
    return lengths
