"""Base class of all parts of a spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Numbers that stand for a size: what is computed of them stays within the range of floats.
MOST = 2**31 - 1
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class Part(BaseModel):
    """Base of every part of a spec: frozen, unknown keys refused, no silent conversions, and no
    number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
