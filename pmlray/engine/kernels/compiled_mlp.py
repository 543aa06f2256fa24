"""MLPs of the frozen suffix compiled on a GPU, which fuses the operations between their products.

One compilation serves all layers and all numbers of positions; it happens when the base is loaded,
as none may happen while a CUDA graph is captured. **Never run on a GPU so far**: so it is first
compared with the uncompiled MLP, and where compilation fails or the results differ, the layers are
left unchanged. `TORCHDYNAMO_DISABLE=1` in a worker's environment turns it off. Not used on a CPU:
there a compiled layer gained little and took a minute to compile
(`scripts/bench/results/engine_log.md`).
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

# Positions in the comparison, at which the MLP is compiled for all numbers. It must be neither a
# width of the model, which torch would take for the same symbol, nor 1.
POSITIONS = 61

Call = Callable[[nn.Module, Tensor], Tensor]


class CompiledMLP(nn.Module):
    """Replacement of an MLP: compiled where gradients pass, otherwise the original.

    Generation has other shapes and would need a compilation of its own.
    """

    def __init__(self, mlp: nn.Module, compiled: Call) -> None:
        super().__init__()
        self.mlp, self._compiled = mlp, compiled

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the MLP to the hidden states, (1, T, D)."""
        if hidden.requires_grad:
            return self._compiled(self.mlp, hidden)
        return self.mlp(hidden)


def compile_mlps(layers: Sequence[Any], size: int) -> bool:
    """Replace each layer's MLP by a compiled one, if that gives the same results.

    layers: decoder layers of one shape, frozen. size: D, of the hidden states. Returns whether they
    were replaced; if not, the reason is logged.
    """
    compiled: Call = torch.compile(
        _call,
        dynamic=True,
        fullgraph=True,
        # Round where unfused torch operations round, so that results do not depend on the compiler.
        options={"emulate_precision_casts": True},
    )
    try:
        why = _difference(layers[0].mlp, compiled, size)
    # torch's compilers raise RuntimeError, the programs that they start cause the other two.
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
    """Return how the output or the input's gradient differs; None where neither does."""
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
