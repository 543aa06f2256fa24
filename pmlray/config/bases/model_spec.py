"""Base model of a search, and the dtype that it is computed in."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from pmlray.config.spec_base import Part
from pmlray.errors import SpecError

Dtype = Literal["float32", "bfloat16"]
DtypeChoice = Literal["auto", "float32", "bfloat16"]
# Default of searches begun before `auto` existed.
FORMER_DTYPE = "bfloat16"


class Model(Part):
    """The frozen base: `smollm2-135m`, `tiny-random-llama`, a hub id, or a local folder.

    `dtype` `auto` is bfloat16 where the training device supports its multiplication, else float32;
    `resolved` is the dtype chosen when the search began, which its store keeps. A hub id without
    `revision` gets the commit of the hub's default branch as its revision when the search begins,
    and is `looked_up`: the store keeps that commit, and the search's id does not depend on it.
    """

    id: str = Field(min_length=1)
    revision: str | None = None
    dtype: DtypeChoice = "auto"
    resolved: SkipJsonSchema[Dtype | None] = None
    looked_up: SkipJsonSchema[bool] = False

    @model_validator(mode="after")
    def _resolves_auto(self) -> Model:
        if self.resolved is not None and self.dtype != "auto":
            raise ValueError("model.resolved goes with dtype: auto alone; leave it out")
        return self

    @property
    def base_dtype(self) -> Dtype:
        """Dtype of the base's weights; SpecError where `auto` was not resolved yet."""
        found = self.resolved if self.dtype == "auto" else self.dtype
        if found is None:
            raise SpecError(
                "model.dtype is auto, and nobody has looked at the device yet; name bfloat16 or"
                " float32"
            )
        return found

    def begun_at(self, kept: Model | None) -> str | None:
        """Return the revision to resolve: where none was asked for, the commit that was looked up
        when the store began. kept: the model of the store; None: there is no store yet."""
        open_ = self.revision is None or self.looked_up
        if open_ and kept is not None and kept.looked_up and kept.id == self.id:
            return kept.revision
        return self.revision

    def at(self, revision: str | None) -> Model:
        """Return the model at the commit that its revision was resolved to; None: unchanged."""
        if revision in (None, self.revision):
            return self
        looked_up = self.looked_up or self.revision is None
        return self.model_copy(update={"revision": revision, "looked_up": looked_up})

    def pinned(self) -> Model:
        """Return the model with its dtype named explicitly: the fields that determine results."""
        return Model(id=self.id, revision=self.revision, dtype=self.base_dtype)


def as_asked(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without what was found when the search began, `resolved` and a commit that
    was looked up, and without the dtype if it is the former default."""
    found = {"resolved", "looked_up"}
    if chosen["model"].get("looked_up"):
        found.add("revision")
    model = {name: value for name, value in chosen["model"].items() if name not in found}
    if model.get("dtype") == FORMER_DTYPE:
        del model["dtype"]
    return {**chosen, "model": model}
