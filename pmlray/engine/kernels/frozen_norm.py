"""RMSNorm with a frozen weight: on a CPU a few rows at a time, on a GPU in one kernel each way.

transformers' own reads whole fp32 copies of its input some ten times in forward and backward: on a
CPU at 1,600 rows these exceeded the cache, and took a seventh of a step; on a GPU (not measured)
each pass is a kernel launch. Shapes: T positions, D size of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.granite.modeling_granite import GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RMSNorm

# All of one code. OLMo 2's rounds elsewhere, and stays as it is.
NORMS = (
    LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, SmolLM3RMSNorm, GraniteRMSNorm,
    Phi3RMSNorm,
)  # fmt: skip
# Two fp32 copies of this size fit a core's cache together with their input.
PART_BYTES = 576 * 2**10


class _FrozenRMSNorm(torch.autograd.Function):
    """RMSNorm with a gradient for its input only.

    With r = (mean x^2 + eps)^(-1/2): y = w (r x); with g = dL/dy and h = w g:
    dL/dx = r (h - x r^2 mean(h x)).
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        size = x_TD.shape[1]
        y_TD, r_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1, dtype=torch.float32)
        for part in _parts(x_TD):
            x = x_TD[part].to(torch.float32, copy=True)
            mean_square = torch.linalg.vecdot(x, x)[:, None].div_(size)
            r_T1[part] = mean_square.add_(eps).rsqrt_()
            torch.mul(x.mul_(r_T1[part]).to(x_TD.dtype), weight_D, out=y_TD[part])
        ctx.save_for_backward(x_TD, weight_D, r_T1)
        return y_TD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        x_TD, weight_D, r_T1 = ctx.saved_tensors
        g_TD, size = upstream[0], x_TD.shape[1]
        grad_TD = torch.empty_like(x_TD)
        for part in _parts(x_TD):
            x, r = x_TD[part].float(), r_T1[part]
            h = (g_TD[part] * weight_D).float()
            along_x = torch.linalg.vecdot(h, x)[:, None].mul_(r * r).div_(-size)
            grad_TD[part] = h.addcmul_(x, along_x).mul_(r)
        return grad_TD, None, None


class FrozenRMSNorm(nn.Module):
    """Replacement of a norm of `NORMS` whose weight is not trained, for a CPU."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension; gradients reach only the input."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        return _FrozenRMSNorm.apply(rows, self.weight, self.variance_epsilon).view(hidden.shape)


class FusedRMSNorm(nn.Module):
    """Replacement of a norm of `NORMS` by torch's rms_norm, which rounds once instead of twice."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(hidden, hidden.shape[-1:], self.weight, self.variance_epsilon)


def freeze_norms(module: nn.Module, frozen: type[FrozenRMSNorm] | type[FusedRMSNorm]) -> None:
    """Replace every norm below a module by a frozen one."""
    for name, child in module.named_children():
        if isinstance(child, NORMS):
            setattr(module, name, frozen(child))
        else:
            freeze_norms(child, frozen)


def _parts(x_TD: Tensor) -> list[slice]:
    rows = max(1, PART_BYTES // (4 * x_TD.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(x_TD), rows)]
