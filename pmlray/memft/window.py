"""MemFT-SW for one long sequence: a window of weight that starts at the first wrong token.

Shapes: n samples, B rows of a batch, T positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pmlray.types import Compat

NO_ANCHOR = -1
_PATIENCE_LIMIT = 3
_EXPANSION_STEP = 0.5
_MAX_EXPANSION = 4.0


@dataclass(frozen=True, slots=True)
class WindowState:
    """State of the window of each sample; tensors (n,), never changed in place.

    `anchor`: int64, the first wrong token at the last step, counted from the sample's first
    supervised token, NO_ANCHOR when there was none. `patience`: int64, steps for which the anchor
    has stood still. `expansion`: float32, factor on the window's length, 1 to 4.
    """

    anchor: Tensor
    patience: Tensor
    expansion: Tensor

    @classmethod
    def fresh(cls, n: int, device: torch.device | str) -> WindowState:
        """Return the state of n samples that have not been trained yet."""
        return cls(
            torch.full((n,), NO_ANCHOR, dtype=torch.int64, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
            torch.ones(n, dtype=torch.float32, device=device),
        )

    def gather(self, sample_ids: Tensor) -> WindowState:
        """Return the state of the samples in a batch, in its order; sample_ids: int64 (B,)."""
        return WindowState(
            self.anchor[sample_ids], self.patience[sample_ids], self.expansion[sample_ids]
        )

    def scatter(self, sample_ids: Tensor, updated: WindowState) -> WindowState:
        """Return this state with the batch's samples replaced.

        sample_ids: int64 (B,), each sample at most once; updated: their states, (B,).
        """
        return WindowState(
            self.anchor.index_copy(0, sample_ids, updated.anchor),
            self.patience.index_copy(0, sample_ids, updated.patience),
            self.expansion.index_copy(0, sample_ids, updated.expansion),
        )


@torch.no_grad()
def window_weights(
    nll_BT: Tensor,
    wrong_BT: Tensor,
    mask_BT: Tensor,
    state: WindowState,
    *,
    window: int = 50,
    tau: float = 20.0,
    floor: float = 0.01,
    scale: float = 10.0,
    p: float = 0.5,
    fixed_B: Tensor | None = None,
    compat: Compat = "mended",
) -> tuple[Tensor, WindowState]:
    """Return soft threshold weights, decaying with the distance past the first wrong token.

    nll_BT: float (B, T), nats; wrong_BT: bool (B, T), argmax is not the label; mask_BT: bool
    (B, T), the supervised positions; state: the rows' states, (B,). window: tokens; tau: decay
    length in tokens; floor: factor beyond the window; scale: per nat; p: threshold probability.

        w = sigmoid(scale (nll - ln(1/p))) phi(d),   d = tokens past the first wrong one
        paper:  phi(d) = exp(-max(d, 0) / tau) for d < window * expansion, else floor
        mended: phi(d) = max(exp(-max(d, 0) / (tau * expansion)), floor) there, else floor
        phi = 1 without an error

    Once the first error has stood still for 3 steps the expansion grows by 0.5 a step, up to 4; it
    returns to 1 when the error moves; in rows that `fixed_B`, bool (B,),
    marks it stays 1. Returns w_BT,
    detached, dtype of nll_BT, 0 outside the mask, and the rows' new states. ValueError when the
    states are not those of B rows.

    The published rule defeats itself: past d = tau ln(1/floor), 92 tokens by default, its decay is
    below the floor, so a wider window lowers the weights that it reaches. `mended` stretches the
    decay with the window and never goes below the floor.
    Source: the sliding window of arXiv 2605.30260, with state kept by sample and not by batch slot.
    """
    n_rows, n_positions = nll_BT.shape
    if state.anchor.shape != (n_rows,):
        raise ValueError(
            f"state holds {tuple(state.anchor.shape)} samples for {n_rows} rows; gather it first"
        )
    errors_BT = wrong_BT & mask_BT
    has_error_B = errors_BT.any(dim=1)
    # As integers: argmax is not defined for bool; of equal values it takes the first.
    first_error_B = errors_BT.to(torch.uint8).argmax(dim=1)
    first_supervised_B = mask_BT.to(torch.uint8).argmax(dim=1)
    anchor_B = torch.where(has_error_B, first_error_B - first_supervised_B, NO_ANCHOR)
    new_state = _advance(state, anchor_B, has_error_B, fixed_B)

    distance_BT = torch.arange(n_positions, device=nll_BT.device) - first_error_B[:, None]
    inside_BT = distance_BT < window * new_state.expansion[:, None]
    past_BT = distance_BT.clamp(min=0).to(nll_BT.dtype)
    if compat == "paper":
        decay_BT = torch.exp(-past_BT / tau)
    else:
        stretch_B1 = new_state.expansion[:, None].to(nll_BT.dtype)
        decay_BT = torch.exp(-past_BT / (tau * stretch_B1)).clamp(min=floor)
    phi_BT = torch.where(inside_BT, decay_BT, floor)
    phi_BT = torch.where(has_error_B[:, None], phi_BT, 1.0)
    base_BT = torch.sigmoid(scale * (nll_BT + math.log(p)))
    # where, not a product: whatever the padding holds, NaN included, it weighs nothing.
    return torch.where(mask_BT, base_BT * phi_BT, 0.0), new_state


def _advance(
    state: WindowState, anchor_B: Tensor, has_error_B: Tensor, fixed_B: Tensor | None
) -> WindowState:
    stuck_B = (anchor_B == state.anchor) & has_error_B
    patience_B = torch.where(stuck_B, state.patience + 1, 0)
    wider_B = (state.expansion + _EXPANSION_STEP).clamp(max=_MAX_EXPANSION)
    widens_B = patience_B >= _PATIENCE_LIMIT
    if fixed_B is not None:
        widens_B &= ~fixed_B
    expansion_B = torch.where(widens_B, wider_B, 1.0)
    return WindowState(anchor_B, patience_B, expansion_B)
