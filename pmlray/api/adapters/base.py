"""Base model of a stored adapter: the one that it was trained on, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmlray.config.bases.model_spec import Dtype, DtypeChoice, Model
from pmlray.config.bases.models import (
    FOLDER_IDENTITY,
    PULLABLE,
    ModelSource,
    require_present,
    resolve_model,
)
from pmlray.config.search_spec import SearchSpec
from pmlray.config.stored_files import SEARCH_FILE, Card, read_stored
from pmlray.engine.adapters.stored_adapter import StoredAdapter
from pmlray.engine.model.device import multiplies_bfloat16, pick_device
from pmlray.errors import ModelError
from pmlray.study.sizing.card import CARD_JSON


def trained_with(folder: Path) -> dict[str, Any]:
    """Return id, revision, dtype, identity, prompt_format and end, as far as they are known."""
    if (folder / CARD_JSON).is_file():
        return read_stored(Card, folder / CARD_JSON).trained_with()
    search_file = folder.absolute().parent.parent / SEARCH_FILE
    if search_file.is_file():
        spec = read_stored(SearchSpec, search_file)
        task = {"prompt_format": spec.task.prompt_format, "end": spec.task.end}
        return {**spec.model.pinned().model_dump(), **task}
    return {}


def base_of(
    folder: Path,
    adapter: StoredAdapter,
    known: Mapping[str, Any],
    model: str | None,
    revision: str | None,
    dtype: DtypeChoice,
) -> tuple[Model, ModelSource]:
    """Return the base of an adapter: the one asked for, else the one that the adapter is of.

    folder: of the adapter; known: as of `trained_with`; model, revision, dtype: what was asked for.
    ModelError where it cannot be found, or has other weights than those of the adapter's training.
    """
    named = known.get("id") or adapter.base_model
    chosen = model or named
    if chosen is None:
        raise ModelError(f"{folder} names no base model; give it by --model")
    # The revision belongs to the base that is named beside it.
    own = model is None or model == named
    base = Model(
        id=chosen,
        revision=revision or (known.get("revision") or adapter.revision if own else None),
        dtype=_dtype(dtype, known),
    )
    try:
        source = resolve_model(base.id, base.revision)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"{folder} is an adapter of {base.id}, which cannot be found from here"
            f" ({error}); give its base by --model: a folder, a pulled name, or a hub id with"
            " --revision"
        ) from error
    belongs = known.get("identity") or _identity_here(named)
    if belongs is not None and _contradicts(source.identity, belongs):
        raise ModelError(
            f"{folder} is an adapter of {named} ({belongs}), not of {base.id}"
            f" ({source.identity}); leave --model out, or give that model"
        )
    require_present(base.id, source)
    return base.at(source.revision), source


def _dtype(asked: DtypeChoice, known: Mapping[str, Any]) -> Dtype:
    """Return the requested dtype, else that of training, else this process's device's."""
    if asked != "auto":
        return asked
    return known.get("dtype") or ("bfloat16" if multiplies_bfloat16(pick_device()) else "float32")


def _identity_here(model_id: str | None) -> str | None:
    """Return the identity of a base that this machine has; None of a hub's or another machine's."""
    if model_id is None or not (model_id in PULLABLE or Path(model_id).is_dir()):
        return None
    return resolve_model(model_id, None).identity


def _contradicts(one: str, other: str) -> bool:
    """Return whether two identities tell of different weights.

    A pulled name, a commit on the hub and a folder's hash may each be of the same weights.
    """
    kinds = [
        "pulled" if x in PULLABLE else "folder" if x.startswith(FOLDER_IDENTITY) else "hub"
        for x in (one, other)
    ]
    return one != other and kinds[0] == kinds[1]
