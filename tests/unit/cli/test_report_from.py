"""`pmlray report --from`: what cannot be read is refused with what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.config import load_search
from pmlray.errors import PmlrayError, SpecError, StoreError


@pytest.mark.parametrize(
    ("search", "source", "kind", "said"),
    [
        ("x-1", "s3://bucket/pmlray", SpecError, "mount that storage"),
        ("../x", ".", SpecError, "pmlray list"),
        ("x-1", ".", StoreError, "is no store of a search"),
        ("missing.yaml", ".", SpecError, "there is no file"),
    ],
)
def test_what_is_no_search_or_no_source(
    search: str, source: str, kind: type[PmlrayError], said: str
) -> None:
    error = CliRunner().invoke(app, ["report", search, "--from", source]).exception
    assert isinstance(error, kind) and said in str(error)


def test_a_search_file_stands_for_its_search(search_file: Path, tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["report", str(search_file), "--from", str(tmp_path)]).exception
    assert str(tmp_path / load_search(search_file).search_id) in str(error)
