"""Validated readers of the JSON files in a store. Stores are untrusted input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from pmlray.config.spec_base import STORED
from pmlray.errors import StoreError

SEARCH_FILE = "search.json"
COMPARISON_FILE = "comparison.json"
SUMMARY_FILE = "summary.json"

Stored = TypeVar("Stored", bound=BaseModel)


class RunFacts(BaseModel, strict=True, allow_inf_nan=False, frozen=True):
    """Facts of the run that wrote a report, None where they are not known.

    `tracking_page`: address of MLflow's table of the runs, if it was reached. `wall_seconds` of the
    whole run, of which `training_share` were optimiser steps; `versions` of packages by name.
    """

    store: str | None = None
    tracking_uri: str | None = None
    tracking_page: str | None = None
    wall_seconds: float | None = None
    training_share: float | None = None
    machine: str | None = None
    versions: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return those that were given, as JSON types."""
        return self.model_dump(exclude_unset=True)


class Summary(BaseModel):
    """Part of a search's summary that cannot be computed again."""

    facts: RunFacts


class CardBase(BaseModel, strict=True):
    """Base model of a stored adapter; `identity` is that of its weights."""

    id: str = Field(min_length=1)
    revision: str | None
    identity: str
    dtype: Literal["float32", "bfloat16"]


class Card(BaseModel, strict=True):
    """Part of an adapter's card that is needed to run the adapter.

    `end`: whether the end of an answer was trained; cards of before say nothing, and it was not.
    """

    base_model: CardBase
    prompt_format: Literal["plain", "chat"]
    end: bool = False

    def trained_with(self) -> dict[str, Any]:
        """Return the fields of the base model and the task's settings in one flat dict."""
        task = {"prompt_format": self.prompt_format, "end": self.end}
        return {**self.base_model.model_dump(), **task}


def read_stored(kind: type[Stored], path: Path) -> Stored:
    """Read a stored file as `kind`; StoreError when it cannot be read or holds anything else."""
    try:
        return kind.model_validate_json(path.read_bytes(), context=STORED)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        # The message omits the content: through a link it may come from any other file.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its start"
        raise StoreError(
            f"{path} is damaged, or of another version of pmlray ({where}: {first['msg']}); move it"
            " away, for what wrote it to write it anew, or choose another --store"
        ) from error


def stored_facts(summary: Path) -> RunFacts:
    """Return the facts in a search's summary; none before there is one. StoreError as above."""
    if not summary.is_file():
        return RunFacts()
    return read_stored(Summary, summary).facts
