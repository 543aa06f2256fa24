"""Command line: a thin layer over the library.

Exit codes: 0 done, 1 recall too low, 2 bad input, 3 run failed, 4 a fault of pmlray itself, 130
interrupted.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import typer

from pmlray.cli.cluster.jobs import list_jobs, logs, status, stop, sync
from pmlray.cli.cluster.submit import submit
from pmlray.cli.compare_commands import compare
from pmlray.cli.doctor import doctor
from pmlray.cli.export_command import export
from pmlray.cli.init_command import init
from pmlray.cli.law_commands import fit, table
from pmlray.cli.model_commands import models
from pmlray.cli.output import print_anything, set_up_logging, tell
from pmlray.cli.report_commands import report
from pmlray.cli.schema_command import schema
from pmlray.cli.search_commands import plan, search, validate
from pmlray.cli.size_commands import recall, size
from pmlray.cli.token_commands import tokens
from pmlray.cli.watch_command import watch
from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.errors import PmlrayError, RunError, StoreError
from pmlray.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
# In the order and the panels of the help.
PANELS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "Search": (init, validate, plan, search, watch, fit, report, tokens, table, compare),
    "Records": (size, recall, export),
    "Cluster": (submit, list_jobs, status, logs, stop, sync),
    "Machine": (schema, doctor),
}
for panel, commands in PANELS.items():
    for command in commands:
        name = "list" if command is list_jobs else None
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(models, name="models", rich_help_panel="Machine")


@dataclass
class Session:
    """Options given before the command, which apply to every command."""

    debug: bool = False


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pmlray {__version__}")
        raise typer.Exit


@app.callback()
def before_commands(
    context: typer.Context,
    _version: bool = typer.Option(
        False,
        "--version",
        help="Show the version of pmlray.",
        callback=_show_version,
        is_eager=True,
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show what pmlray does, and errors with their traceback."
    ),
) -> None:
    """Measure how much text a LoRA adapter can hold word for word."""
    if debug:
        context.ensure_object(Session).debug = True
        logging.getLogger("pmlray").setLevel(logging.DEBUG)


def main() -> None:
    """Run the command line; an error prints one message with its remedy, without a traceback."""
    print_anything()
    set_up_logging()
    # At its exit the interpreter would look through all objects of all modules once more, for two
    # CPU seconds after a search, to free memory that the system takes back anyway. Registered
    # first, it runs after what others have registered.
    atexit.register(gc.freeze)
    # Some commands compute in this process; OpenMP reads this once, when torch is imported.
    bound_waits(os.environ)
    session = Session()
    try:
        app(obj=session)
    # Last-resort handler: print one line instead of a traceback.
    except Exception as error:
        if session.debug:
            raise
        tell(f"error: {_explained(error)}")
        sys.exit(_exit_code(error))


def _explained(error: Exception) -> str:
    if isinstance(error, PmlrayError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error}; check that path, its permissions and the space on its disk"
    return (
        f"{type(error).__name__}: {error}; this is a fault of pmlray: `pmlray --debug COMMAND ...`"
        " shows where, and what it shows is worth reporting"
    )


def _exit_code(error: Exception) -> int:
    if isinstance(error, (RunError, StoreError, OSError)):
        return 3
    return 2 if isinstance(error, PmlrayError) else 4
