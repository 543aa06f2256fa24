"""`pmlray models pull` and `list`."""

from __future__ import annotations

from pathlib import Path

import typer

from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.bases.families import FAST
from pmlray.config.bases.models import (
    DESCRIPTIONS,
    KNOWN_MODELS,
    PULLABLE,
    PULLED_MARK,
    pulled_folder,
    resolve_model,
)
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
    """Show which models can be pulled, which are here, and which path a base takes."""
    found = {
        name: str(pulled_folder(name)) if (pulled_folder(name) / PULLED_MARK).is_file() else None
        for name in PULLABLE
    }
    paths = {name: geometry.path for name, geometry in KNOWN_MODELS.items()}
    lines = [
        f"{name} ({DESCRIPTIONS[name]}; {paths[name]} path): {folder or 'not pulled'}"
        for name, folder in found.items()
    ]
    lines.append(f"fast path: {', '.join(FAST)}")
    lines.append("general path: every other decoder-only causal language model of transformers")
    emit({"models": found, "paths": paths, "fast": [*FAST]}, "\n".join(lines), as_json)


@models.command()
def show(
    model_id: str = typer.Argument(..., help="A folder, a hub id (owner/name), or a pulled name."),
    revision: str | None = typer.Option(
        None, help="Commit, branch or tag on the hub; default: its default branch."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show which path a base takes, and the modules that an adapter can sit at.

    Its files are checked as `validate` does; one that cannot work is refused with the reason.
    """
    source = resolve_model(model_id, revision)
    geometry = source.geometry
    refused = {} if geometry.own is None else dict(geometry.own.refused)
    lines = [
        f"{model_id}: {geometry.path} path, {geometry.n_layers} layers, reads {geometry.context}"
        " tokens",
        *(f"{name} ({a} to {b})" for name, (a, b) in geometry.modules.items()),
        *(f"{name}: cannot be adapted: {why}" for name, why in refused.items()),
    ]
    emit(
        {
            "model": model_id,
            "identity": source.identity,
            "path": geometry.path,
            "n_layers": geometry.n_layers,
            "context": geometry.context,
            "modules": geometry.modules,
            "refused": refused,
        },
        "\n".join(lines),
        as_json,
    )
