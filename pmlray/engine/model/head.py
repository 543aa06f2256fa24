"""Loss at supervised positions only, in chunks, with no weight gradient for the frozen head.

Shapes: N supervised positions, D hidden size, V vocabulary, C supervised positions of a chunk.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_LOGITS_BYTES = 56 * 2**20
# On a CPU a chunk's logits stay in the head's dtype, and a few large chunks multiply up to twice as
# fast as many small ones.
CPU_LOGITS_BYTES = 96 * 2**20
# Softmax reads the logits several times: on a CPU in parts that fit a core's cache.
CPU_PASS_BYTES = 2 * 2**20
# From some 380 rows on oneDNN runs the product with the weights on one of two threads: 1,024 rows
# at once took 58 ms, in four parts 29 to 36.
CPU_PRODUCT_ROWS = 320


class TokenLosses(NamedTuple):
    """Negative log-likelihood (nats, fp32) and argmax error of each supervised token, (N,) each."""

    nll_N: Tensor
    wrong_N: Tensor


class _FrozenHeadNll(torch.autograd.Function):
    """Cross-entropy through a frozen linear head, its gradient computed in the forward pass.

    With z = W h, m = max z and e = exp(z - m): nll = log(sum e) + m - z_y, and
    d nll / d h = (e W) / (sum e) - W_y. Each token's nll depends on its own h alone, so the
    backward pass only scales the stored gradient by the incoming one: any per-token weighting is
    exact, and a chunk of logits is freed before the next one is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        n = hidden_ND.shape[0]
        nll_N = torch.empty(n, dtype=torch.float32, device=hidden_ND.device)
        wrong_N = torch.empty(n, dtype=torch.bool, device=hidden_ND.device)
        needs_grad = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if needs_grad else None
        on_cpu = _in_caches(hidden_ND)
        pass_rows = _rows_within(CPU_PASS_BYTES, 4, len(weight_VD)) if on_cpu else chunk
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_ND[part], weight_VD)
            target_C = target_N[part]
            totals = []
            for first in range(0, logits_CV.shape[0], pass_rows):
                rows = slice(first, first + pass_rows)
                target = target_C[rows]
                z = _as_fp32(logits_CV[rows])
                # On a CPU argmax costs several times as much as the maximum alone.
                peak, argmax = (z.amax(dim=-1), None) if on_cpu else z.max(dim=-1)
                at_target = z.gather(1, target[:, None]).squeeze(1)
                exp = z.sub_(peak[:, None]).exp_()
                total = exp.sum(dim=-1)
                seen = slice(start + first, start + first + target.shape[0])
                nll_N[seen] = total.log() + peak - at_target
                if argmax is not None:
                    wrong_N[seen] = argmax != target
                else:
                    wrong_N[seen] = _misses(logits_CV[rows], target, at_target >= peak, total)
                if grad_ND is not None:
                    logits_CV[rows] = exp
                    totals.append(total)
            if grad_ND is not None:
                total_C = torch.cat(totals)[:, None].to(weight_VD.dtype)
                along_CD = _along_weights(logits_CV, weight_VD)
                grad_ND[part] = along_CD / total_C - weight_VD[target_C]
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        ctx.mark_non_differentiable(wrong_N)
        return nll_N, wrong_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * upstream[0][:, None].to(grad_ND.dtype), None, None, None


def _in_caches(values: Tensor) -> bool:
    """Return whether to work in parts that fit a CPU's caches, and to branch on values.

    Branching on a GPU's values would wait for the device.
    """
    return values.is_cpu


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    if not _in_caches(hidden_CD):
        return hidden_CD @ weight_VD.T
    # A reused workspace: the allocator would get new, cleared pages for every chunk.
    space_CV = _workspace(CPU_LOGITS_BYTES, weight_VD.shape[0], weight_VD.dtype)
    return torch.mm(hidden_CD, weight_VD.T, out=space_CV[: hidden_CD.shape[0]])


def _along_weights(exp_CV: Tensor, weight_VD: Tensor) -> Tensor:
    if not _in_caches(exp_CV):
        return exp_CV @ weight_VD
    n_parts = -(-len(exp_CV) // CPU_PRODUCT_ROWS)
    return torch.cat([part @ weight_VD for part in exp_CV.tensor_split(n_parts)])


def _as_fp32(logits_PV: Tensor) -> Tensor:
    """Return a part of the logits as fp32; on a CPU a copy, which the next part overwrites."""
    if not _in_caches(logits_PV):
        return logits_PV.float()
    space_PV = _workspace(CPU_PASS_BYTES, logits_PV.shape[1], torch.float32)
    return space_PV[: logits_PV.shape[0]].copy_(logits_PV)


@lru_cache(maxsize=2)
def _workspace(n_bytes: int, vocab: int, dtype: torch.dtype) -> Tensor:
    # Shared by the whole process, as its steps run one after another.
    return torch.empty(_rows_within(n_bytes, dtype.itemsize, vocab), vocab, dtype=dtype)


def _misses(logits_CV: Tensor, target_C: Tensor, at_peak_C: Tensor, total_C: Tensor) -> Tensor:
    """Return whether each token's argmax differs from its target, computing it only if needed.

    A target below the peak is missed. One at the peak with more than half of the mass
    (total_C < 2) is the only maximum; with less there may be a tie, where argmax takes the first.
    """
    wrong_C = ~at_peak_C
    shared = (at_peak_C & (total_C >= 2)).nonzero().squeeze(1)
    if len(shared):
        wrong_C[shared] = logits_CV[shared].argmax(dim=-1) != target_C[shared]
    return wrong_C


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> TokenLosses:
    """Return the losses of target tokens under a frozen head.

    At most 56 MiB of logits (96 MiB on a CPU) are held at a time. hidden_ND: final hidden states at
    the positions that predict; weight_VD: the head; target_N: token ids. The gradient reaches
    hidden_ND only.
    """
    if _in_caches(hidden_ND):
        chunk = _rows_within(CPU_LOGITS_BYTES, weight_VD.dtype.itemsize, len(weight_VD))
    else:
        chunk = _rows_within(MAX_LOGITS_BYTES, 4, len(weight_VD))
    return TokenLosses(*_FrozenHeadNll.apply(hidden_ND, weight_VD, target_N, chunk))


def _rows_within(n_bytes: int, itemsize: int, vocab: int) -> int:
    """Return the number of tokens, at least 1, whose logits fit n_bytes.

    itemsize: bytes of a logit. vocab: logits per token.
    """
    return max(1, n_bytes // (itemsize * vocab))
