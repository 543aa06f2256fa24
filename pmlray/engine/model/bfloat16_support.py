"""Whether a device is one to multiply bfloat16 on."""

from __future__ import annotations

import torch

from pmlray.config.dtype import BFLOAT16_INSTRUCTIONS


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; a GPU has.

    Without them a product of torch 2.13 in bfloat16 (1,024 x 1,536 x 1,024, AMD EPYC with AVX2, two
    threads) took 188 times as long as in float32.
    """
    if device.type != "cpu":
        return True
    known = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        known.get(name) for name in BFLOAT16_INSTRUCTIONS
    )
