"""`pmlray models pull` and `list`."""

from __future__ import annotations

from pathlib import Path

import typer

from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.bases.models import DESCRIPTIONS, PULLABLE, PULLED_MARK, pulled_folder
from pmlray.errors import INSTALL_TRAIN, ModelError

models = typer.Typer(help="Base models in pmlray's cache.", no_args_is_help=True)


@models.command()
def pull(
    model_id: str = typer.Argument(..., help=f"One of {', '.join(PULLABLE)}."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Download a base model once, verify it and keep it."""
    if model_id not in PULLABLE:
        raise ModelError(f"cannot pull {model_id!r}; pmlray pulls {', '.join(PULLABLE)}")
    folder = pulled_folder(model_id)
    # torch is imported only if the model must be pulled.
    if not (folder / PULLED_MARK).is_file():
        folder = _pulled(model_id)
    emit({"model": model_id, "folder": str(folder)}, f"{model_id}: {folder}", as_json)


def _pulled(model_id: str) -> Path:
    try:
        from pmlray.engine.model.pull import pull_model
    except ImportError as error:
        raise ModelError(
            f"pulling a model needs the train extra ({error}); run: {INSTALL_TRAIN}"
        ) from error
    return pull_model(model_id)


@models.command("list")
def list_models(as_json: bool = JSON_OPTION) -> None:
    """Show which models can be pulled and which are here."""
    found = {
        name: str(pulled_folder(name)) if (pulled_folder(name) / PULLED_MARK).is_file() else None
        for name in PULLABLE
    }
    lines = [
        f"{name} ({DESCRIPTIONS[name]}): {folder or 'not pulled'}" for name, folder in found.items()
    ]
    emit({"models": found}, "\n".join(lines), as_json)
