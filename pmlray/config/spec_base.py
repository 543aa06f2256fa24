"""Base class of all parts of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

# Limit of sizes, so that values computed from them stay within the range of floats.
MOST = 2**31 - 1
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Validation context of specs that a store kept, which may be older than some keys.
STORED = "stored"


class Part(BaseModel):
    """Base class of every part of a spec: frozen; refuses unknown keys, implicit conversions, NaN
    and infinity."""

    # What to say of keys that other specs have, by the key.
    INSTEAD: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
