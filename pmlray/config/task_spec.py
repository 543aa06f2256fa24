"""Text to memorise, as a search file says it."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, ValidationInfo, model_validator

from pmlray.config.spec_base import STORED, Part, Seed
from pmlray.memory import Columns

DEFAULT_KEY_PROMPT = "Please output the content of the vector memory injected into the activations."


class RecordColumns(Part):
    """Columns of a records file that hold the query and the target."""

    query: str = Field(min_length=1)
    target: str = Field(min_length=1)


class Task(Part):
    """The text to memorise. `text` and `records` are paths, relative to the search file.

    `columns` names those of records that hold the query and the target, where no known layout does.
    `linear_rule` (z = 3x + 5y + 7) is learnt rather than memorised: `control_recall` is its recall
    on pairs that the run was not trained on. A record that stands several times counts once;
    `keep_duplicates`: an epoch shows it as often as it stands in the file. `end`: whether the token
    that ends an answer is trained after every target, so that generation stops there (the end of
    turn of the chat template, else the tokenizer's end token); by default true for all but
    `long_context`, whose text is cut anywhere. It counts neither in lengths nor in losses; a record
    is recalled word for word where the target and then its end are decoded.
    """

    kind: Literal["long_context", "phonebook", "records", "linear_rule"]
    random_ratio: Literal[0, 20, 40, 60, 80, 100] = 100
    data_seed: Seed = 0
    key_prompt: str = Field(default=DEFAULT_KEY_PROMPT, min_length=1)
    prompt_format: Literal["plain", "chat"] = "chat"
    text: str | None = None
    records: str | None = None
    columns: RecordColumns | None = None
    keep_duplicates: bool = False
    end: bool = Field(default_factory=lambda found: found.get("kind") != "long_context")

    @model_validator(mode="before")
    @classmethod
    def _had_no_end(cls, found: Any, info: ValidationInfo) -> Any:
        """Read a stored task of before this key existed, when no end was trained."""
        if info.context == STORED and isinstance(found, dict):
            return {"end": False, **cast("dict[str, Any]", found)}
        return found

    @model_validator(mode="after")
    def _needs_its_file(self) -> Task:
        if self.kind == "records" and self.records is None:
            raise ValueError(
                "task.records is needed: the path of a file of records, each a query and a target"
            )
        if self.columns is not None and self.records is None:
            raise ValueError("task.columns names columns of task.records, which is not given")
        if self.kind == "long_context" and self.random_ratio < 100 and self.text is None:
            raise ValueError(
                f"task.text is needed when random_ratio is {self.random_ratio}: the path of a plain"
                " text whose tokens are kept (random_ratio 100 needs none)"
            )
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults of before `end` existed, as JSON."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"end"})
        return {**fields, "end": True} if self.end else fields

    @property
    def record_columns(self) -> Columns | None:
        """Columns that hold the query and the target of a record; None where a layout tells."""
        return None if self.columns is None else Columns(self.columns.query, self.columns.target)
