"""Numerical comparison of a step with the same step computed in another way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Relative to the norm of the step's change. Sums in another order change gradients by about a
# hundredth of this in fp32 and up to this in bf16; a stale input or a missing tensor changes them
# by the whole norm.
TOLERANCE = 0.02
# Relative to the norm of the tensor itself: the resolution of fp32.
ROUNDING = 1e-6


def difference(
    before: Mapping[str, Tensor], expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> str | None:
    """Return a description of how `found` differs from `expected`, None where it does not.

    before: the tensors before the step, by the same names; a missing one counts as zero. Equal
    infinities, and NaN in both, are no difference. Waits for the device.
    """
    for name, right in expected.items():
        was = before[name] if name in before else torch.zeros_like(right)
        equal = (found[name] == right) | (found[name].isnan() & right.isnan())
        off = torch.where(equal, 0.0, found[name].double() - right.double()).norm().item()
        change = (_finite(right) - _finite(was)).norm().item()
        most = TOLERANCE * change + ROUNDING * _finite(right).norm().item()
        # Not `off > most`: with NaN in only one of them, `off` is NaN, which is a difference.
        if not off <= most:
            return f"{name} is off by {off:.2g} where {most:.2g} is allowed"
    return None


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0).double()
