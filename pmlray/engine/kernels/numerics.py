"""Comparison of a step with the same step taken in another way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Of the norm of what the step changed. Sums in another order move gradients by about a hundredth of
# this in fp32 and up to this in bf16; a stale input or a tensor left out moves them by all of it.
TOLERANCE = 0.02
# Of the norm of a tensor itself: what fp32 can tell.
ROUNDING = 1e-6


def difference(
    before: Mapping[str, Tensor], expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> str | None:
    """Return how `found` differs from `expected`, None where it does not; waits for the device.

    before: the tensors before the step, by the same names; zero for those that were not there. The
    same infinity, or not a number in both, is no difference.
    """
    for name, right in expected.items():
        was = before[name] if name in before else torch.zeros_like(right)
        equal = (found[name] == right) | (found[name].isnan() & right.isnan())
        off = torch.where(equal, 0.0, found[name].double() - right.double()).norm().item()
        change = (_finite(right) - _finite(was)).norm().item()
        most = TOLERANCE * change + ROUNDING * _finite(right).norm().item()
        # So that a number in one and none in the other is a difference.
        if not off <= most:
            return f"{name} is off by {off:.2g} where {most:.2g} is allowed"
    return None


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0).double()
