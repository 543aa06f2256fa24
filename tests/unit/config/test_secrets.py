"""No secret is taken as an argument, and none is told again."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.config.secrets import no_password, without_credentials
from pmlray.errors import SpecError

WITH_SECRET = (
    "postgresql+psycopg://user:hunter2@host/db", "https://user:hunter2@mlflow.example.org",
    "postgresql:///db?host=/run/pg&password=hunter2", "mysql://u:hunter2@h:3306/db?charset=utf8",
    "postgresql://user:p@hunter2@host/db",
)  # fmt: skip
WITHOUT = (
    "sqlite:////tmp/mlflow.db", "http://127.0.0.1:5000", "postgresql://user@host/db",
    "postgresql+psycopg://postgres@/postgres?host=/tmp/pg",
)  # fmt: skip


@pytest.mark.parametrize("uri", WITH_SECRET)
@pytest.mark.parametrize(
    "command",
    [
        ["search", "x"],
        ["submit", "x"],
        ["sync", "x"],
        ["compare", "x"],
        ["report", "x", "--from"],
        ["watch", "x", "--from"],
    ],
)
def test_an_argument_with_a_password_is_refused_without_saying_it(
    command: list[str], uri: str
) -> None:
    option = [] if command[-1] == "--from" else ["--tracking-uri"]
    refused = CliRunner().invoke(app, [*command, *option, uri])
    assert isinstance(refused.exception, SpecError)
    assert "holds a password" in str(refused.exception)
    assert "hunter2" not in str(refused.exception) + refused.output


@pytest.mark.parametrize("uri", WITHOUT)
def test_an_address_without_one_is_taken(uri: str) -> None:
    assert no_password(uri) == uri


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_what_is_shown_of_an_address_holds_no_secret(uri: str) -> None:
    assert "hunter2" not in without_credentials(f"lost {uri} twice")
