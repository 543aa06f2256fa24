"""MLPs of the frozen suffix by torch.compile, on a GPU: what stands between their products, fused.

One compilation serves all layers and all numbers of positions; it is made when the base is loaded,
as none may be made while a CUDA graph is captured. **Never run on a GPU so far**: so it is first
compared with the MLP as it is, and where it cannot be compiled or differs, layers stay as they are.
`TORCHDYNAMO_DISABLE=1` in a worker's environment does without. Not on a CPU: there a layer compiled
gained little and took a minute to compile (`scripts/bench/results/engine_log.md`).
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pmlray.engine.kernels.numerics import difference

log = logging.getLogger(__name__)

# Of the comparison, and compiled for all: but not where it equals a width, which torch would take
# for the same number, nor where it is one.
POSITIONS = 61

Call = Callable[[nn.Module, Tensor], Tensor]


class CompiledMLP(nn.Module):
    """In place of an MLP: compiled where gradients pass. Generation, with its other shapes, would
    have to be compiled for itself."""

    def __init__(self, mlp: nn.Module, compiled: Call) -> None:
        super().__init__()
        self.mlp, self._compiled = mlp, compiled

    def forward(self, hidden: Tensor) -> Tensor:
        """The MLP of the hidden states, (1, T, D)."""
        if hidden.requires_grad:
            return self._compiled(self.mlp, hidden)
        return self.mlp(hidden)


def compile_mlps(layers: Sequence[Any], size: int) -> bool:
    """Put a compiled MLP in the place of each layer's, if it gives the same.

    layers: decoder layers of one shape, frozen. size: D, of the hidden states. Returns whether it
    did, and says in the log why not.
    """
    compiled: Call = torch.compile(
        _call,
        dynamic=True,
        fullgraph=True,
        # Rounded where torch rounds when nothing is fused: results do not depend on a compiler.
        options={"emulate_precision_casts": True},
    )
    try:
        why = _difference(layers[0].mlp, compiled, size)
    # torch's compilers report by RuntimeError, what they start by the other two.
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        why = str(error).strip().partition("\n")[0]
    if why is not None:
        log.warning("MLPs are not compiled, and go on without: %s", why)
        return False
    for layer in layers:
        layer.mlp = CompiledMLP(layer.mlp, compiled)
    return True


def _call(mlp: nn.Module, hidden: Tensor) -> Tensor:
    return mlp(hidden)


def _difference(mlp: nn.Module, compiled: Call, size: int) -> str | None:
    """Return a difference in the output or the input's gradient; None where there is none."""
    weight = next(mlp.parameters())
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 1, POSITIONS, size, generator=generator).to(weight)
    plain, found = (_both_ways(call, mlp, drawn) for call in (_call, compiled))
    return difference({}, plain, found)


def _both_ways(call: Call, mlp: nn.Module, drawn: Tensor) -> dict[str, Tensor]:
    hidden = drawn[0].clone().requires_grad_()
    output = call(mlp, hidden)
    (gradient,) = torch.autograd.grad(output, hidden, drawn[1])
    return {"output": output.detach(), "gradient": gradient}
