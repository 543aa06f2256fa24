"""MemFT options of a search or a comparison."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pmlray.config.spec_base import Part, PositiveInt
from pmlray.types import Compat, Equal, MemftRules

MEMFT_METHODS = Literal["memft_ot", "memft_sw", "memft_fw", "memft_rd"]


class MemftOptions(Part):
    """Weights that the MemFT methods give to tokens.

    `memft_ot`: only tokens whose probability is below `threshold`. `memft_sw`: by the distance past
    the first wrong token, in a window that widens while that token stays the same (`shape:
    spatial`, the default of long_context), or `memft_ot` on a growing set of records (`temporal`,
    the default of other tasks). `memft_fw`: the window at a fixed width. `memft_rd`: `memft_ot`,
    where tokens and records above `margin` leave the batch and are rechecked every
    `recheck_epochs`. `equal` names what this keeps equal: gpu_seconds (by the work of layers and
    head) or tokens, where the saved work goes into more steps on the others, or steps, at less
    cost. Under the threshold rule recalled tokens carry no weight, so a run ends once everything is
    recalled. `compat: paper` keeps the rules of the paper's code with their defects.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    shape: Literal["auto", "spatial", "temporal"] = "auto"
    compat: Compat = "mended"
    margin: Annotated[float, Field(ge=0.5, lt=1)] = 0.75
    recheck_epochs: PositiveInt = 16
    equal: Equal = "gpu_seconds"

    @model_validator(mode="after")
    def _leaves_what_is_recalled(self) -> MemftOptions:
        if self.margin < self.threshold:
            raise ValueError(
                f"margin {self.margin} is below threshold {self.threshold}: tokens would leave the"
                " batch while they are trained; raise margin"
            )
        return self

    def rules(self, task_kind: str) -> MemftRules:
        """Return the rules for a task of one long record or of many."""
        shape = self.shape
        if shape == "auto":
            shape = "spatial" if task_kind == "long_context" else "temporal"
        return MemftRules(
            self.threshold,
            shape == "temporal",
            self.compat,
            self.margin,
            self.recheck_epochs,
            self.equal,
        )


class Memft(MemftOptions):
    """The MemFT phase: `n_points` design points near the 0.5 threshold, `n_pairs` replicates."""

    methods: tuple[MEMFT_METHODS, ...] = Field(default=("memft_ot", "memft_sw"), min_length=1)
    n_points: PositiveInt = 1
    n_pairs: PositiveInt = 2
