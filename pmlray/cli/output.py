"""Output of every command: JSON for machines on stdout, text for people."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import typer
from rich.console import Console

# No markup: an interval [inf, inf] would be read as a style and left out.
out = Console(highlight=False, markup=False, soft_wrap=True)
JSON_OPTION = typer.Option(False, "--json", help="One JSON object on stdout; logs go to stderr.")
SET_OPTION = typer.Option(None, "--set", help="Override a key: --set budget.gpu_seconds=600.")


def emit(value: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the object as JSON, or the text."""
    if as_json:
        typer.echo(json.dumps(value))
    else:
        out.print(text)


def set_up_logging() -> None:
    """Log warnings and above to stderr."""
    # MLflow sets its own level when imported, and otherwise logs every table that it creates.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
