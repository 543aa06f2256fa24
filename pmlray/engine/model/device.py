"""The device that this process trains on."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """The GPU this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
