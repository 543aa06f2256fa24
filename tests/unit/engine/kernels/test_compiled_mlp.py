"""Which MLPs are taken compiled, and that one which does not compile, or differs, is let go of.

What compiles here is a stand-in; tests/integration/engine/test_compiled_mlp.py compiles.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmlray.engine.kernels.compiled_mlp import CompiledMLP, compile_mlps

Call = Callable[[nn.Module, Tensor], Tensor]


@pytest.fixture
def layers() -> list[Any]:
    return [SimpleNamespace(mlp=nn.Linear(6, 6, bias=False)) for _ in range(2)]


@pytest.fixture
def compiled_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], None]:
    """Sets what torch.compile makes of a call."""

    def set_to(call: Call) -> None:
        monkeypatch.setattr(torch, "compile", lambda _plain, **_options: call)

    return set_to


def test_only_what_gradients_pass_is_taken_compiled(
    layers: list[Any], compiled_as: Callable[[Call], None]
) -> None:
    calls: list[int] = []

    def call(mlp: nn.Module, hidden: Tensor) -> Tensor:
        calls.append(hidden.shape[1])
        return mlp(hidden)

    compiled_as(call)
    plain = [layer.mlp for layer in layers]
    assert compile_mlps(layers, 6)
    calls.clear()
    hidden = torch.randn(1, 5, 6)
    for layer, mlp in zip(layers, plain, strict=True):
        assert isinstance(layer.mlp, CompiledMLP)
        assert torch.equal(layer.mlp(hidden), mlp(hidden))
    assert not calls
    for layer in layers:
        layer.mlp(hidden.clone().requires_grad_())
    assert calls == [5, 5]


class _Doubled(torch.autograd.Function):
    """The same output, twice the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return 2 * upstream[0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda mlp, hidden: 1.1 * mlp(hidden), "output is off by"),
        (lambda mlp, hidden: mlp(_Doubled.apply(hidden)), "gradient is off by"),
        (lambda mlp, hidden: mlp(hidden) * float("nan"), "output is off by"),
    ],
    ids=["output", "gradient", "nan"],
)
def test_what_differs_is_let_go_of(
    call: Call,
    said: str,
    layers: list[Any],
    compiled_as: Callable[[Call], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled_as(call)
    plain = [layer.mlp for layer in layers]
    assert not compile_mlps(layers, 6)
    assert [layer.mlp for layer in layers] == plain
    assert said in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler\nmore"),
        FileNotFoundError("ptxas"),
        subprocess.CalledProcessError(1, "gcc"),
    ],
    ids=["compiler", "file", "subprocess"],
)
def test_what_does_not_compile_is_let_go_of(
    error: Exception,
    layers: list[Any],
    compiled_as: Callable[[Call], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def call(_mlp: nn.Module, _hidden: Tensor) -> Tensor:
        raise error

    compiled_as(call)
    plain = [layer.mlp for layer in layers]
    assert not compile_mlps(layers, 6)
    assert [layer.mlp for layer in layers] == plain
    assert str(error).partition("\n")[0] in caplog.text
    assert "more" not in caplog.text
