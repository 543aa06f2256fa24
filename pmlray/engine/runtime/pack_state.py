"""State of a pack between two steps, as tensors by name and JSON types.

Each part of the loop gets and sets its own state; the state of the whole is made of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackState:
    """Tensors by name, and the rest as JSON types; a name's first part, up to a dot, may be the
    name of a part."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of_parts(cls, parts: Mapping[str, PackState]) -> PackState:
        """The state of a whole."""
        tensors = {
            f"{name}.{inner}": tensor
            for name, state in parts.items()
            for inner, tensor in state.tensors.items()
        }
        return cls(tensors, {name: state.facts for name, state in parts.items()})

    def part(self, name: str) -> PackState:
        """One part's state; KeyError where there is none of that name."""
        prefix = f"{name}."
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }
        return PackState(tensors, self.facts[name])

    def on_host(self) -> PackState:
        """A copy that later steps do not change; waits for the device."""
        tensors = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in self.tensors.items()}
        return PackState(tensors, self.facts)

    def to(self, device: torch.device) -> PackState:
        """The same on a device."""
        return PackState({n: t.to(device) for n, t in self.tensors.items()}, self.facts)


class Stateful(Protocol):
    """A part of the loop that carries state from step to step."""

    def get_state(self) -> PackState:
        """The state that `set_state` continues from."""
        ...

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        ...
