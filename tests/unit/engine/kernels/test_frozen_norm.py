"""Frozen norms, of a CPU and of a GPU, against transformers' own, forth and back."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pmlray.engine.kernels import frozen_norm
from pmlray.engine.kernels.frozen_norm import FrozenRMSNorm, FusedRMSNorm, freeze_norms


@pytest.fixture
def norm() -> LlamaRMSNorm:
    made = LlamaRMSNorm(24, eps=1e-5).requires_grad_(False)
    made.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return made


def both_ways(norm: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("shape", [(1, 11, 24), (2, 5, 3, 24)], ids=["hidden", "heads"])
def test_it_is_transformers_norm_whatever_a_part_holds(
    shape: tuple[int, ...], norm: LlamaRMSNorm, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    expected = both_ways(norm, x)
    for rows in (1, 4, 1000):
        monkeypatch.setattr(frozen_norm, "PART_BYTES", 4 * 24 * rows)
        torch.testing.assert_close(both_ways(FrozenRMSNorm(norm), x), expected)
    assert torch.equal(x, kept)


def test_in_bfloat16_it_rounds_where_transformers_does(norm: LlamaRMSNorm) -> None:
    x = torch.randn(1, 200, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, theirs = both_ways(FrozenRMSNorm(norm.bfloat16()), x), both_ways(norm.bfloat16(), x)
    for mine, other in zip(ours, theirs, strict=True):
        # The sums are taken in another order: a last bit here and there.
        assert (mine != other).float().mean() < 0.01
        torch.testing.assert_close(mine, other, rtol=2**-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 11, 24), (2, 5, 3, 24)], ids=["hidden", "heads"])
def test_the_norm_of_a_gpu_is_transformers_but_for_a_rounding(
    shape: tuple[int, ...], norm: LlamaRMSNorm
) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both_ways(FusedRMSNorm(norm), x), both_ways(norm, x))
    norm, x = norm.bfloat16(), x.bfloat16()
    expected = both_ways(norm, x)
    torch.testing.assert_close(both_ways(FusedRMSNorm(norm), x), expected, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("frozen", [FrozenRMSNorm, FusedRMSNorm])
def test_every_norm_below_a_module_is_replaced(
    norm: LlamaRMSNorm, frozen: type[FrozenRMSNorm] | type[FusedRMSNorm]
) -> None:
    inner = torch.nn.ModuleDict({"norm": norm, "linear": torch.nn.Linear(2, 2)})
    outer = torch.nn.ModuleList([inner])
    freeze_norms(outer, frozen)
    assert isinstance(inner["norm"], frozen) and inner["norm"].weight is norm.weight
    assert isinstance(inner["linear"], torch.nn.Linear)
