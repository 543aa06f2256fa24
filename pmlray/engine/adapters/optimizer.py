"""AdamW for packed adapters, with a learning rate, normaliser, clipping and step count for each.

Shapes: N adapters; parameters are (N, ...), those of a group of adapters as many as it has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pmlray.engine.runtime.pack_state import PackState

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
# An update reads its tensors eleven times: on a CPU in parts of this size, which fit its caches.
CPU_PART_BYTES = 2**20


class PackedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on tensors whose first axis is the adapter.

    Each parameter group has the tensors of some of the adapters, which follow those of the group
    before.

    Gradients are sums over tokens. `prepare` sets, for the next step, each adapter's rate and the
    weight sum that turns its gradient into a mean. An adapter whose weight sum is 0 is unchanged,
    including its moments and step count. `norm_N`: the last step's norm of each adapter's mean
    gradient, before clipping.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        *,
        clip_norm: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"weight_decay": weight_decay})
        self.clip_norm = clip_norm
        sizes = [len(group["params"][0]) for group in self.param_groups]
        self._firsts = [0, *accumulate(sizes)]
        first, n = self.param_groups[0]["params"][0], self._firsts[-1]
        self._rate_N = torch.zeros(n, device=first.device)
        self._weight_sum_N = torch.zeros(n, device=first.device)
        # fp64: in fp32 the first step's 1 - beta2 is already 5e-5 off.
        self._count_N = torch.zeros(n, device=first.device, dtype=torch.float64)
        self.norm_N = torch.zeros(n, device=first.device)

    def prepare(self, rate_N: Tensor, weight_sum_N: Tensor) -> None:
        """Set rates and normalisers of the next `step`; both (N,)."""
        self._rate_N, self._weight_sum_N = rate_N, weight_sum_N

    @torch.no_grad()
    def copy_adapter(self, source: int, target: int) -> None:
        """Copy one adapter's parameters, moments and step count to another."""
        params, own = self._params_of(source)
        for p in params:
            for tensor in (p, *self.state[p].values()):
                tensor[own - source + target] = tensor[own]
        self._count_N[target] = self._count_N[source]

    def forget(self, adapter: int) -> None:
        """Reset an adapter's moments and step count, so that its next step is its first."""
        params, own = self._params_of(adapter)
        for p in params:
            for tensor in self.state[p].values():
                tensor[own] = 0
        self._count_N[adapter] = 0

    def _params_of(self, adapter: int) -> tuple[list[torch.nn.Parameter], int]:
        """Return the parameters of an adapter's group, and its place in them."""
        group = bisect_right(self._firsts, adapter) - 1
        return self.param_groups[group]["params"], adapter - self._firsts[group]

    def _all_params(self) -> list[torch.nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def get_state(self) -> PackState:
        """Return the moments and step counts, which `set_state` restores."""
        moments = {
            f"{name}.{i}": tensor
            for i, p in enumerate(self._all_params())
            for name, tensor in self.state[p].items()
        }
        return PackState({**moments, "count_N": self._count_N})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        params = self._all_params()
        for key, tensor in state.tensors.items():
            if key == "count_N":
                self._count_N.copy_(tensor)
            else:
                name, _, i = key.partition(".")
                p = params[int(i)]
                self.state[p][name] = tensor.to(p.device).clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Normalise, clip and update every adapter with a positive weight sum."""
        assert closure is None, "PackedAdamW takes no closure"
        moves_N = self._weight_sum_N > 0
        mean_N = torch.where(moves_N, 1.0 / self._weight_sum_N.clamp_min(1e-30), 0.0)
        self.norm_N = self._norms() * mean_N
        # The same guard as torch.nn.utils.clip_grad_norm_.
        clip_N = (self.clip_norm / (self.norm_N + 1e-6)).clamp(max=1.0)
        self._count_N += moves_N
        count_N = self._count_N.clamp_min(1)
        rate_N = torch.where(moves_N, self._rate_N, 0.0)
        how = _Update(
            moves_N,
            scale_N=mean_N * clip_N,
            step_size_N=(rate_N / (1 - BETA1**count_N)).to(rate_N.dtype),
            root_N=(1 - BETA2**count_N).sqrt().to(rate_N.dtype),
        )
        for group, first in zip(self.param_groups, self._firsts, strict=False):
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
                flat = [tensor.view(len(p), -1) for tensor in tensors]
                for part in _parts(p):
                    own = slice(part.start + first, min(part.stop, len(p)) + first)
                    if decay := group["weight_decay"]:
                        flat[0][part].mul_((1 - decay * rate_N)[own, None])
                    how(own, *(tensor[part] for tensor in flat))

    def _norms(self) -> Tensor:
        """Return the norm of each adapter's gradient, (N,); 0 where its group has none."""
        found = []
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            norms = [grad.flatten(1).norm(dim=1) for grad in grads]
            nothing = torch.zeros(len(group["params"][0]), device=self._count_N.device)
            found.append(torch.stack(norms).norm(dim=0) if norms else nothing)
        return torch.cat(found)


class _Update(NamedTuple):
    """One step of AdamW on some of the adapters, in place."""

    moves_N: Tensor
    scale_N: Tensor
    step_size_N: Tensor
    root_N: Tensor

    def __call__(self, part: slice, p: Tensor, grad: Tensor, mean: Tensor, square: Tensor) -> None:
        moves, scale, step_size, root = (x_N[part, None] for x_N in self)
        # The gradient of an adapter that is not updated may be infinite or NaN.
        grad.mul_(scale).masked_fill_(~moves, 0.0)
        mean.lerp_(grad, (1 - BETA1) * moves)
        square.mul_(torch.where(moves, BETA2, 1.0)).addcmul_(grad, grad, value=1 - BETA2)
        move = square.sqrt().div_(root).add_(EPS)
        torch.div(mean, move, out=move)
        p.sub_(move.mul_(step_size))


def _parts(p: Tensor) -> list[slice]:
    """Return slices of adapters that are updated at once."""
    n = len(p)
    at_once = max(1, CPU_PART_BYTES // p[0].nbytes) if p.is_cpu else n
    return [slice(first, first + at_once) for first in range(0, n, at_once)]
