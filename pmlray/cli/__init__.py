"""The command line: a thin face over the library.

Exit codes: 0 done, 1 recall too low, 2 bad input, 3 run failed, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from pmlray.cli.cluster_commands import submit
from pmlray.cli.compare_commands import compare
from pmlray.cli.doctor import doctor
from pmlray.cli.init_command import init
from pmlray.cli.job_commands import list_jobs, logs, status, stop
from pmlray.cli.law_commands import fit, table
from pmlray.cli.model_commands import models
from pmlray.cli.output import set_up_logging
from pmlray.cli.report_commands import report
from pmlray.cli.schema_command import schema
from pmlray.cli.search_commands import plan, search, validate
from pmlray.cli.size_commands import recall, size
from pmlray.cli.sync_command import sync
from pmlray.errors import PmlrayError, RunError, StoreError

app = typer.Typer(
    help="Measure how much text a LoRA adapter can hold word for word.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    init,
    validate,
    plan,
    search,
    compare,
    size,
    recall,
    fit,
    report,
    table,
    schema,
    sync,
    submit,
)
JOB_COMMANDS = {"list": list_jobs, "status": status, "logs": logs, "stop": stop}
for command in COMMANDS:
    app.command()(command)
for name, command in JOB_COMMANDS.items():
    app.command(name)(command)
app.add_typer(doctor, name="doctor")
app.add_typer(models, name="models")


def main() -> None:
    """Run the command line; errors that the user can mend are one message, without a traceback."""
    set_up_logging()
    try:
        app()
    except (RunError, StoreError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(3)
    except PmlrayError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
