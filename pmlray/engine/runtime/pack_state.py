"""State of a pack between two steps, as tensors by name and JSON types.

Each part of the loop gets and sets its own state; a pack's state is composed of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackState:
    """Tensors by name, and everything else as JSON types.

    In a composed state, names begin with the name of a part and a dot.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of_parts(cls, parts: Mapping[str, PackState]) -> PackState:
        """Compose the states of parts, by name, into one state."""
        tensors = {
            f"{name}.{inner}": tensor
            for name, state in parts.items()
            for inner, tensor in state.tensors.items()
        }
        return cls(tensors, {name: state.facts for name, state in parts.items()})

    def part(self, name: str) -> PackState:
        """Return the state of one part; KeyError where there is none of that name."""
        prefix = f"{name}."
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }
        return PackState(tensors, self.facts[name])

    def on_host(self) -> PackState:
        """Return a copy on the host that later steps do not change; waits for the device."""
        tensors = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in self.tensors.items()}
        return PackState(tensors, self.facts)

    def to(self, device: torch.device) -> PackState:
        """Return the state with its tensors on a device."""
        return PackState({n: t.to(device) for n, t in self.tensors.items()}, self.facts)


class Stateful(Protocol):
    """A part of the loop that keeps state from step to step."""

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        ...

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        ...
