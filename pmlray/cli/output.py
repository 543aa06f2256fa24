"""Output of every command: JSON for machines on stdout, text for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import typer
from rich.console import Console

from pmlray.config.printable import printable

# No markup: an interval [inf, inf] would be read as a style and left out.
out = Console(highlight=False, markup=False, soft_wrap=True)
JSON_OPTION = typer.Option(False, "--json", help="One JSON object on stdout; logs go to stderr.")
COLUMNS_OPTION = typer.Option(
    None, help="Columns of query and target under other names: query=NAME,target=NAME."
)
SET_OPTION = typer.Option(None, "--set", help="Override a key: --set budget.gpu_seconds=600.")


def emit(value: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the object as JSON, or the text."""
    if as_json:
        typer.echo(json.dumps(value))
    else:
        out.print(printable(text))


def tell(text: str) -> None:
    """Print a line for people on stderr."""
    typer.echo(printable(text), err=True)


class PrintableFormatter(logging.Formatter):
    """Formatter of log lines, which may quote a store's texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without what would steer the terminal."""
        return printable(super().format(record))


def print_anything() -> None:
    """Let characters that the terminal's encoding lacks be printed by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        # Another kind of stream, as in notebooks, takes all text.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def set_up_logging() -> None:
    """Log warnings and above to stderr, and where MLflow shows the runs."""
    # MLflow sets its own level when imported, and otherwise logs every table that it creates.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pmlray.backends.mlflow.spooled_tracker").setLevel(logging.INFO)
