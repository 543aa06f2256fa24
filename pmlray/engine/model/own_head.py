"""Loss at supervised positions through whatever a model does to make its logits, in chunks.

Shapes: N supervised positions, D hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pmlray.engine.model.head import MAX_LOGITS_BYTES, TokenLosses

LogitsOf = Callable[[Tensor], Tensor]


class _OwnHeadNll(torch.autograd.Function):
    """Cross-entropy through a frozen head, its gradient computed in the forward pass.

    As in `head`: each token's loss depends on its own hidden state alone, so that the backward pass
    only scales the stored gradient, and a chunk of logits is freed before the next is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, logits_of: LogitsOf, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        needs_grad, nll, wrong, grads = ctx.needs_input_grad[0], [], [], []
        for start in range(0, len(hidden_ND), chunk):
            own_CD = hidden_ND[start : start + chunk].detach().requires_grad_(needs_grad)
            target_C = target_N[start : start + chunk]
            with torch.set_grad_enabled(needs_grad):
                logits_CV = logits_of(own_CD).float()
                nll_C = cross_entropy(logits_CV, target_C, reduction="none")
                if needs_grad:
                    grads += torch.autograd.grad(nll_C.sum(), own_CD)
            nll.append(nll_C.detach())
            wrong.append(logits_CV.detach().argmax(dim=-1) != target_C)
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        wrong_N = torch.cat(wrong)
        ctx.mark_non_differentiable(wrong_N)
        return torch.cat(nll), wrong_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * upstream[0][:, None].to(grad_ND.dtype), None, None, None


def own_head_losses(
    logits_of: LogitsOf, hidden_ND: Tensor, target_N: Tensor, vocab: int
) -> TokenLosses:
    """Return the losses of target tokens under a model's own head.

    At most 56 MiB of fp32 logits, and what the head keeps of as many for its gradient, are held at
    a time. The gradient reaches hidden_ND only.

    Args:
        logits_of: logits (C, V) of final hidden states (C, D); each of its own hidden state alone.
        hidden_ND: final hidden states at the positions that predict.
        target_N: token ids.
        vocab: V.
    """
    chunk = max(1, MAX_LOGITS_BYTES // (4 * vocab))
    return TokenLosses(*_OwnHeadNll.apply(hidden_ND, logits_of, target_N, chunk))
