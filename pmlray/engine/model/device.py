"""The device that this process trains on, and copies of host values to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pmlray.config.bases.dtype import BFLOAT16_INSTRUCTIONS


def pick_device() -> torch.device:
    """Return the GPU visible to this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(
    values: Sequence[float] | Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the values as a tensor on a device.

    To a GPU they are copied from page-locked memory: from ordinary memory torch would wait until
    the device has finished all queued work.
    """
    host = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bfloat16; a GPU always has.

    Without them a matrix product of torch 2.13 in bfloat16 (1,024 x 1,536 x 1,024, AMD EPYC with
    AVX2, two threads) took 188 times as long as in float32.
    """
    if device.type != "cpu":
        return True
    known = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        known.get(name) for name in BFLOAT16_INSTRUCTIONS
    )
