"""`pmlray schema`: the JSON Schemas of the files that people write."""

from __future__ import annotations

import json
from typing import Any, Literal

import typer
from pydantic import BaseModel

from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.compare_spec import CompareSpec

FileKind = Literal["search", "comparison", "profile"]
KINDS: dict[FileKind, type[BaseModel]] = {
    "search": SearchSpec,
    "comparison": CompareSpec,
    "profile": ClusterProfile,
}


def schema(kind: FileKind = typer.Argument(..., help="Which kind of YAML file.")) -> None:
    """Print the JSON Schema of a kind of YAML file, by which editors complete its keys."""
    typer.echo(json.dumps(file_schema(kind), indent=2))


def file_schema(kind: FileKind) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `search`, `comparison` or `profile` files.

    Checks beyond a schema, such as whether a model has that layer, are left to `pmlray validate`.
    """
    found = KINDS[kind].model_json_schema()
    # Whoever writes YAML has no use for an example in Python.
    found["description"] = found["description"].partition("\n\nExample:")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
