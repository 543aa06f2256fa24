"""Token weights of a step: plain SFT, or one of the MemFT rules (arXiv 2605.30260)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.memft import (
    WindowState,
    fallback_weights,
    threshold_weights,
    window_weights,
)
from pmlray.types import MemftRules

WINDOW = ("anchor", "patience", "expansion")


class TokenWeights:
    """Per-token weights of a micro-batch, by the method of each row's adapter.

    `memft_ot` and `memft_rd` use the threshold rule, as does `memft_sw` where its set of records in
    play grows; otherwise `memft_sw` uses the sliding window, and `memft_fw` the same window at a
    fixed width. The window's state is kept per record. Under the paper's rules (its code) an
    adapter none of whose tokens carries weight takes a plain step, except with the growing set.
    """

    def __init__(self, members: Sequence[Member], rules: MemftRules) -> None:
        device = members[0].rows[0].record.hidden_TD.device
        self._rules, self._n = rules, len(members)

        def flags(chosen: Callable[[Member], bool]) -> Tensor:
            return torch.tensor([chosen(m) for m in members], device=device)

        windows = ("memft_sw", "memft_fw")
        self._grows_N = flags(lambda m: m.grows(rules))
        self._plain_N = flags(lambda m: m.run.method == "sft")
        self._fixed_N = flags(lambda m: m.run.method == "memft_fw")
        self._windowed_N = flags(lambda m: m.run.method in windows and not m.grows(rules))
        # Kept on the host, so that a step need not read it from the device.
        self._any_window = any(m.run.method in windows and not m.grows(rules) for m in members)
        self._window_state = WindowState.fresh(sum(len(m.rows) for m in members), device)

    def copy_samples(self, source: Tensor, target: Tensor) -> None:
        """Copy the window state of samples to others; both int64 (n,)."""
        self._write(target, self._window_state.gather(source))

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState({name: getattr(self._window_state, name) for name in WINDOW})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        for name in WINDOW:
            getattr(self._window_state, name).copy_(state.tensors[name])

    def __call__(self, batch: MicroBatch, nll_RL: Tensor, wrong_RL: Tensor) -> Tensor:
        """Return the weights, (R, L), zero where there is no token, without a gradient."""
        nll_RL, mask_RL, at_R = nll_RL.detach(), batch.mask_RL, batch.adapter_of_row_R
        weights_RL = threshold_weights(nll_RL, mask_RL, self._rules.threshold)
        if self._any_window:
            window_RL = self._window(batch, nll_RL, wrong_RL)
            weights_RL = torch.where(self._windowed_N[at_R][:, None], window_RL, weights_RL)
        if self._rules.compat == "paper":
            filled_RL = fallback_weights(weights_RL, mask_RL, at_R, self._n, "sft")
            weights_RL = torch.where(self._grows_N[at_R][:, None], weights_RL, filled_RL)
        plain_R1 = self._plain_N[at_R][:, None]
        return torch.where(plain_R1, mask_RL.to(nll_RL.dtype), weights_RL)

    def _window(self, batch: MicroBatch, nll_RL: Tensor, wrong_RL: Tensor) -> Tensor:
        state = self._window_state.gather(batch.sample_of_row_R)
        window_RL, state = window_weights(
            nll_RL,
            wrong_RL,
            batch.mask_RL,
            state,
            p=self._rules.threshold,
            fixed_B=self._fixed_N[batch.adapter_of_row_R],
            compat=self._rules.compat,
        )
        self._write(batch.sample_of_row_R, state)
        return window_RL

    def _write(self, samples: Tensor, state: WindowState) -> None:
        """Replace the state of samples, int64 (n,), in place: a captured step uses its address."""
        replaced = self._window_state.scatter(samples, state)
        for name in WINDOW:
            getattr(self._window_state, name).copy_(getattr(replaced, name))
