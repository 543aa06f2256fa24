"""`pmlray schema`, the schemas in searches/, and the table of keys in its README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.cli.schema_command import KINDS
from pmlray.config import load_spec

ROOT = Path(__file__).parents[3]
FILES = {
    "search": [*ROOT.glob("searches/*.yaml"), *ROOT.glob("searches/tables/*.yaml")],
    "comparison": [*ROOT.glob("searches/comparisons/*.yaml")],
    "profile": [*ROOT.glob("cluster/profiles/*.yaml")],
}
BY_KIND = [(kind, path) for kind, paths in FILES.items() for path in paths]
ROW = re.compile(r"^\| `([\w.]+)` \| .+ \| (?:`(.*)` )?\|$", re.MULTILINE)


def shipped(kind: str) -> Any:
    return json.loads((ROOT / "searches" / f"{kind}.schema.json").read_text())


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_shipped_schemas_are_those_of_this_version(kind: str) -> None:
    printed = CliRunner().invoke(app, ["schema", kind])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == shipped(kind), f"run: pmlray schema {kind}"
    Draft202012Validator.check_schema(shipped(kind))


@pytest.mark.parametrize(("kind", "path"), BY_KIND, ids=[p.name for _, p in BY_KIND])
def test_each_file_names_its_schema_and_follows_it(kind: str, path: Path) -> None:
    first, *_ = path.read_text().splitlines()
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == ROOT / "searches" / f"{kind}.schema.json"
    # As an editor reads it, by YAML 1.2: 1e-2 is a number, which PyYAML takes for a text.
    content = load_spec(KINDS[kind], path).model_dump(mode="json", exclude_unset=True)
    assert content.keys() == yaml.safe_load(path.read_text()).keys()
    validator = Draft202012Validator(shipped(kind))
    validator.validate(content)
    with pytest.raises(ValidationError, match="lora_rnak"):
        validator.validate(content | {"lora_rnak": 4})


def leaves(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, dotted, with its default as the part above it has it."""
    for name, field in kind.model_fields.items():
        inner = [
            option
            for option in (field.annotation, *get_args(field.annotation))
            if isinstance(option, type) and issubclass(option, BaseModel)
        ]
        default = field.get_default()
        # A key that takes a plain value too is explained as one.
        plain = {*get_args(field.annotation)} - {*inner, type(None), ...}
        if not inner or plain:
            yield above + name, default
            continue
        for key, own in leaves(inner[0], f"{above}{name}."):
            last = key.split(".")[-1]
            given = isinstance(default, BaseModel) and key == f"{above}{name}.{last}"
            yield key, getattr(default, last) if given else own


def told(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return ""
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


@pytest.mark.parametrize(
    ("kind", "heading"),
    [("search", "## Keys of a search"), ("profile", "## Keys of a profile")],
)
def test_the_readme_explains_every_key_with_its_default(kind: str, heading: str) -> None:
    text = (ROOT / "searches" / "README.md").read_text()
    section = text.split(heading)[1].split("\n## ")[0]
    rows = ROW.findall(section)
    # What was found when a search began is the store's to say, not a file's.
    found = ("model.resolved", "model.looked_up")
    keys = ((key, told(own)) for key, own in leaves(KINDS[kind]) if key not in found)
    assert sorted(rows) == sorted(keys)


def test_the_readme_has_the_keys_that_comparisons_do_not_share() -> None:
    text = (ROOT / "searches" / "README.md").read_text()
    section = text.split("## Keys of a comparison")[1].split("\n## ")[0]
    rows = dict(ROW.findall(section))
    of_search = {key: told(default) for key, default in leaves(KINDS["search"])}
    own = {key: told(default) for key, default in leaves(KINDS["comparison"])}
    points = {key for key in own if key.startswith("points.")}
    assert rows.pop("points") == ""
    assert rows == {
        key: default
        for key, default in own.items()
        if of_search.get(key) != default and key not in points
    }
