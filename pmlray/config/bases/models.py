"""Base models by name: their source and geometry, found without loading any weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pmlray.config.bases.checks import check_folder
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.hub import find_on_hub
from pmlray.config.store_folder import local_folder
from pmlray.errors import ModelError

SMOLLM2 = "smollm2-135m"
TINY = "tiny-random-llama"
PULLABLE = (SMOLLM2, TINY)
# Hub id of a pulled name; its weights are those of the hub except for rounding.
HUB_IDS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
DESCRIPTIONS = {
    SMOLLM2: f"{HUB_IDS[SMOLLM2]}, de-quantised from Q4_1",
    TINY: "a Llama of 4 layers with random weights, for tests",
}
PULLED_MARK = "pmlray_pull.json"
FOLDER_IDENTITY = "folder-"  # before the hash that identifies a folder's weights


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Resolved base: `identity` of its weights, and `folder` if they are on this machine.

    revision: commit of a hub model, to which a branch or a tag was resolved.
    """

    identity: str
    geometry: Geometry
    folder: Path | None
    revision: str | None = None


KNOWN_MODELS: Mapping[str, Geometry] = {
    SMOLLM2: Geometry(30, 576, 1536, 9, 3, 64, 49152, 8192),
    TINY: Geometry(4, 64, 128, 4, 2, 16, 512, 1024),
    "Qwen/Qwen3-8B": Geometry(36, 4096, 12288, 32, 8, 128, 151936, 40960),
    "meta-llama/Llama-3.1-8B-Instruct": Geometry(32, 4096, 14336, 32, 8, 128, 128256, 131072),
}

# Commits of the hub models that are used in searches/.
KNOWN_REVISIONS: Mapping[str, str] = {
    "Qwen/Qwen3-8B": "b968826d9c46dd6066d109eabc6255188de91218",
    "meta-llama/Llama-3.1-8B-Instruct": "0e9e39f249a16976918f6564b8830bc894c89659",
}


def cache_root() -> Path:
    """Return the folder of pulled models: `PMLRAY_CACHE`, else the user's cache folder.

    SpecError where PMLRAY_CACHE is a URL.
    """
    if chosen := os.environ.get("PMLRAY_CACHE"):
        return local_folder(chosen, "PMLRAY_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmlray"


def pulled_folder(model_id: str) -> Path:
    """Return the folder that `pmlray models pull` uses for a model."""
    return cache_root() / "models" / model_id


def loadable_name(model_id: str) -> str:
    """Return what transformers and PEFT load a model by: a hub id, or a folder's whole path."""
    if model_id in HUB_IDS:
        return HUB_IDS[model_id]
    folder = pulled_folder(model_id) if model_id in PULLABLE else _folder_of(model_id)
    return model_id if folder is None else str(folder.resolve())


def resolve_model(model_id: str, revision: str | None) -> ModelSource:
    """Find a model's identity and geometry, and check its files as far as headers tell.

    A pullable name resolves whether or not it was pulled (`folder` is None when not); a folder is
    read; anything else must be a hub id, whose revision, or without one its default branch, is
    resolved to its commit. Raises ModelError with the remedy.
    """
    if model_id in PULLABLE:
        folder = pulled_folder(model_id)
        if not (folder / PULLED_MARK).is_file():
            return ModelSource(model_id, KNOWN_MODELS[model_id], None)
        return ModelSource(model_id, check_folder(folder), folder)
    folder = _folder_of(model_id)
    if folder is not None:
        geometry = check_folder(folder)
        return ModelSource(_folder_identity(folder), geometry, folder.resolve())
    if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise ModelError(
            f"model.id {model_id!r} is neither a folder here, nor a hub id (owner/name), nor one of"
            f" {', '.join(PULLABLE)}"
        )
    commit, geometry = find_on_hub(model_id, revision, KNOWN_MODELS.get(model_id))
    return ModelSource(f"{model_id}@{commit}", geometry, None, commit)


@cache
def known_geometry(model_id: str) -> Geometry | None:
    """Return a base's sizes as far as this machine knows them without asking the hub; None where it
    does not."""
    if model_id in KNOWN_MODELS:
        return KNOWN_MODELS[model_id]
    folder = _folder_of(model_id)
    try:
        return None if folder is None else check_folder(folder)
    except ModelError:
        return None


def require_present(model_id: str, source: ModelSource) -> None:
    """Raise ModelError when a pullable model was not pulled yet."""
    if model_id in PULLABLE and source.folder is None:
        raise ModelError(
            f"the base model {model_id} is not on this machine; run: pmlray models pull {model_id}"
        )


def _folder_of(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # The name is too long, or names an unknown user's home.
        return None


def _folder_identity(folder: Path) -> str:
    """Return a hash of names, sizes, and the first and last MiB of each weight and JSON file.

    It distinguishes weights of many GB in milliseconds, and is the same for a copy of the folder.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
    return f"{FOLDER_IDENTITY}{digest.hexdigest()[:16]}"
