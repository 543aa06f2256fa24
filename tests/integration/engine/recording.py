"""What a CUDA graph does, on a CPU: the kernels of a step, replayed at the same addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pmlray.engine.training.step import StepFound

aten = torch.ops.aten
# What reads a value of the device, makes tensors as large as values say, or brings values in.
FORBIDDEN = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount,
    aten.lift_fresh,
)  # fmt: skip
Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class NotCapturable(AssertionError):
    """A step did what no captured step can do."""


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in FORBIDDEN or _picks_by_value(func, args):
            raise NotCapturable(str(func))
        out = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.calls.append((func, args, kwargs or {}, out))
        return out


def _picks_by_value(func: Any, args: tuple[Any, ...]) -> bool:
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(i is not None and i.dtype == torch.bool for i in args[1])


class Recorded:
    """A Recorder without a GPU: every tensor stays where it was when the step was recorded, and
    what Python made of it stays what it was then."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def run(self, step: Callable[[], StepFound]) -> StepFound:
        """See Recorder."""
        return step()

    def record(self, step: Callable[[], StepFound]) -> tuple[StepFound, Callable[[], None]]:
        """See Recorder."""
        self.records += 1
        with _Kernels() as kernels:
            found = step()

        def replay() -> None:
            self.replays += 1
            self.replay(kernels.calls)

        return found, replay

    @torch.no_grad()
    def replay(self, calls: list[Call]) -> None:
        """Do once more what was recorded."""
        for func, args, kwargs, recorded in calls:
            again = func(*args, **kwargs)
            given = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and _memory(new) not in given:
                    old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
