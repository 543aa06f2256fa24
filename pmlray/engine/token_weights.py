"""Which tokens a step trains on: plain SFT, or one of the MemFT rules (arXiv 2605.30260)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pmlray.engine.batches import MicroBatch
from pmlray.engine.members import Member
from pmlray.memft import WindowState, threshold_weights, window_weights


class TokenWeights:
    """Per-token weights of a micro-batch, by the method of each row's adapter.

    `memft_sw` is the sliding window for a task of one long record, and the threshold rule under
    the prefix curriculum (`temporal`) for a task of many. The window's state is kept per record.
    """

    def __init__(self, members: Sequence[Member], threshold: float, temporal: bool) -> None:
        device = members[0].rows[0].record.hidden_TD.device
        self._threshold = threshold
        self._thresholded_N = torch.tensor(
            [m.run.method == "memft_ot" or (temporal and m.run.method == "memft_sw")
             for m in members], device=device,
        )  # fmt: skip
        self._windowed_N = torch.tensor(
            [m.run.method == "memft_sw" and not temporal for m in members], device=device
        )
        # Known on the host, so that a step never waits to learn which rules it needs.
        self._any_window = any(m.run.method == "memft_sw" and not temporal for m in members)
        self._state = WindowState.fresh(sum(len(m.rows) for m in members), device)

    def copy_samples(self, source: Tensor, target: Tensor) -> None:
        """Give samples the state of others; both int64 (n,)."""
        self._state = self._state.scatter(target, self._state.gather(source))

    def __call__(self, batch: MicroBatch, nll_RL: Tensor, wrong_RL: Tensor) -> Tensor:
        """Weights (R, L), zero where there is no token, without a gradient."""
        nll_RL, mask_RL = nll_RL.detach(), batch.mask_RL
        thresholded_R = self._thresholded_N[batch.adapter_of_row_R][:, None]
        threshold_RL = threshold_weights(nll_RL, mask_RL, self._threshold)
        weights_RL = torch.where(thresholded_R, threshold_RL, mask_RL.to(nll_RL.dtype))
        if not self._any_window:
            return weights_RL
        state = self._state.gather(batch.sample_of_row_R)
        window_RL, state = window_weights(nll_RL, wrong_RL, mask_RL, state, p=self._threshold)
        self._state = self._state.scatter(batch.sample_of_row_R, state)
        windowed_R = self._windowed_N[batch.adapter_of_row_R][:, None]
        return torch.where(windowed_R, window_RL, weights_RL)
