"""Base class of all parts of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _lists_as_tuples(cls, given: Any) -> Any:
        """Take lists where tuples are, in Python as in files."""
        return _as_tuples(given)


def _as_tuples(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(_as_tuples(part) for part in cast("list[Any]", given))
    return given
