"""The `space` part of a spec: the design points that a search may measure, and its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from pmlray.config.adapters.adapter_spec import NamedAdapter
from pmlray.config.spec_base import Part, PositiveInt
from pmlray.types import DesignPoint

# Limit of a grid's points, and of replicates, which are all held in memory.
MOST_POINTS = 1_000_000
# A placement's name stands in names of runs and in tables, and within a key of `--set`.
PlacementName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$", max_length=40)]


class Space(Part):
    """The grid of design points; every list ascends.

    `placement`: where adapters may sit, by names of your choice, in place of the search's `adapter`
    or `probe`. Each is tried with its own `lora_rank` or, by default, that of the space.
    """

    placement: dict[PlacementName, NamedAdapter] | None = Field(default=None, min_length=1)
    lora_rank: tuple[PositiveInt, ...] = Field(min_length=1)
    seq_len: tuple[PositiveInt, ...] = Field(min_length=1)
    train_steps: tuple[PositiveInt, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascends(self) -> Space:
        lists = {name: getattr(self, name) for name in ("lora_rank", "seq_len", "train_steps")}
        lists |= {self.key_of_ranks(name): self.ranks_of(name) for name in self.placement or ()}
        for name, values in lists.items():
            if list(values) != sorted(set(values)):
                raise ValueError(f"space.{name} must ascend without repeats, got {list(values)}")
        if self.n_points > MOST_POINTS:
            raise ValueError(f"space has {self.n_points} points; at most {MOST_POINTS} can be kept")
        return self

    @property
    def placements(self) -> tuple[str | None, ...]:
        """Names of the placements, in the file's order; None alone where they have none."""
        return (None,) if self.placement is None else tuple(self.placement)

    def ranks_of(self, placement: str | None) -> tuple[int, ...]:
        """Return the ranks of a placement's adapters."""
        own = None if self.placement is None else self.placement[str(placement)].lora_rank
        return self.lora_rank if own is None else own

    def key_of_ranks(self, placement: str | None) -> str:
        """Return the key, below `space`, that the ranks of a placement stand at."""
        own = self.placement is not None and self.placement[str(placement)].lora_rank is not None
        return f"placement.{placement}.lora_rank" if own else "lora_rank"

    @property
    def n_points(self) -> int:
        """Number of cells of the grid."""
        n_ranks = sum(len(self.ranks_of(name)) for name in self.placements)
        return n_ranks * len(self.seq_len) * len(self.train_steps)

    def points(self) -> tuple[DesignPoint, ...]:
        """Return every cell of the grid, placements and then ranks outermost."""
        return tuple(
            DesignPoint(r, length, t, name)
            for name in self.placements
            for r in self.ranks_of(name)
            for length in self.seq_len
            for t in self.train_steps
        )

    def corners(self) -> tuple[DesignPoint, ...]:
        """Return the largest cell of each placement."""
        return tuple(
            DesignPoint(self.ranks_of(name)[-1], self.seq_len[-1], self.train_steps[-1], name)
            for name in self.placements
        )


class Targets(Part):
    """Points where the law must be known well: the product of these ranks, lengths and steps, at
    the placements named, by default at every one."""

    lora_rank: tuple[PositiveInt, ...] = Field(min_length=1)
    seq_len: tuple[PositiveInt, ...] = Field(min_length=1)
    train_steps: tuple[PositiveInt, ...] | None = None
    placement: tuple[PlacementName, ...] | None = Field(default=None, min_length=1)

    def points(self, space: Space) -> tuple[DesignPoint, ...]:
        """Return the targets of a search over a space."""
        steps: Sequence[int] = self.train_steps or (space.train_steps[-1],)
        return tuple(
            DesignPoint(r, length, t, name)
            for name in self.placement or space.placements
            for r in self.lora_rank
            for length in self.seq_len
            for t in steps
        )
