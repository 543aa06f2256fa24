"""MemFT-OT: training only of the tokens that are not yet safely recalled.

Shapes: B rows (samples), T positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def threshold_weights(nll_BT: Tensor, mask_BT: Tensor, p: float = 0.5) -> Tensor:
    """Return weight 1 for each supervised token with probability below p, else 0.

    nll_BT: float (B, T), nats; mask_BT: bool (B, T), the supervised positions; p: probability in
    (0, 1]. At p = 0.5 a token with weight 0 is certain to be the argmax. Returns w_BT, detached,
    dtype of nll_BT. Source: the OT objective of arXiv 2605.30260.
    """
    # Not `nll > -ln p`: a NaN loss must keep its weight and show, not pass for a recalled token.
    unsafe_BT = ~(nll_BT <= -math.log(p))
    return (unsafe_BT & mask_BT).to(nll_BT.dtype)
