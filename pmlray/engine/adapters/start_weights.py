"""Weights of the adapter that runs begin with."""

from __future__ import annotations

from safetensors.torch import load

from pmlray.config.adapters.start_adapter import StartAdapter
from pmlray.engine.adapters.packed_factors import AdapterWeights


def start_weights(start: StartAdapter) -> AdapterWeights:
    """Return A (X, r) and B (r, D) of the adapter by site, in fp32, in host memory."""
    tensors = load(start.weights)
    found = {}
    for site, names in start.names.items():
        a, b = (tensors[name].float() for name in names)
        found[site] = (a.T, b.T) if start.transposed else (a, b)
    return found
