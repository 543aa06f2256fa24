"""Base models by name: their source and geometry, found without loading any weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

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
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")
PULLED_MARK = "pmlray_pull.json"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a decoder-only base; `context` is its longest input in tokens."""

    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def layer_weights(self) -> int:
        """Number of weights in one decoder layer's projections."""
        attention = self.hidden * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    def params_per_rank(self, placement: str) -> int:
        """Return the number of adapter parameters, A and B, per unit of rank at a placement.

        `mlp` maps the hidden width to itself, `down_proj` the inner width to the hidden one.
        """
        width = self.hidden if placement == "mlp" else self.intermediate
        return width + self.hidden


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Resolved base: `identity` of its weights, and `folder` if they are on this machine."""

    identity: str
    geometry: Geometry
    folder: Path | None


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
    """Return the folder of pulled models: `PMLRAY_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("PMLRAY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmlray"


def pulled_folder(model_id: str) -> Path:
    """Return the folder that `pmlray models pull` uses for a model."""
    return cache_root() / "models" / model_id


def resolve_model(model_id: str, revision: str | None) -> ModelSource:
    """Find a model's identity and geometry.

    A pullable name resolves whether or not it was pulled (`folder` is None when not); a folder is
    read; anything else must be a hub id with a pinned revision. Raises ModelError with the remedy.
    """
    if model_id in PULLABLE:
        folder = pulled_folder(model_id)
        pulled = (folder / PULLED_MARK).is_file()
        return ModelSource(model_id, KNOWN_MODELS[model_id], folder if pulled else None)
    folder = _folder_of(model_id)
    if folder is not None:
        return ModelSource(_folder_identity(folder), _folder_geometry(folder), folder.resolve())
    if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise ModelError(
            f"model.id {model_id!r} is neither a folder here, nor a hub id (owner/name), nor one of"
            f" {', '.join(PULLABLE)}"
        )
    if revision is None:
        raise ModelError(
            f"model.revision is needed for the hub model {model_id}: a commit hash, so that the"
            " measured weights can never change under the search"
        )
    identity = f"{model_id}@{revision}"
    if model_id in KNOWN_MODELS:
        return ModelSource(identity, KNOWN_MODELS[model_id], None)
    return ModelSource(identity, _hub_geometry(model_id, revision), None)


def require_present(model_id: str, source: ModelSource) -> None:
    """Raise ModelError when a pullable model was not pulled yet."""
    if model_id in PULLABLE and source.folder is None:
        raise ModelError(
            f"the base model {model_id} is not on this machine; run: pmlray models pull {model_id}"
        )


def geometry_from_config(config: Mapping[str, Any], where: str) -> Geometry:
    """Return the geometry in a transformers config.json; ModelError for an invalid one or an
    unsupported family."""
    try:
        found = (config.get("architectures") or ["none"])[0]
        if found not in ARCHITECTURES:
            raise ModelError(
                f"{where}: architecture {found!r} is not supported; pmlray needs the decoder layers"
                f" of {' or '.join(ARCHITECTURES)} (mlp.down_proj, rotary positions, causal"
                " attention)"
            )
        if "sliding_attention" in (config.get("layer_types") or []):
            raise ModelError(
                f"{where}: sliding-window layers are not supported, only full attention"
            )
        heads = config["num_attention_heads"]
        geometry = Geometry(
            n_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            n_heads=heads,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
        )
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{where}: no transformers config of a language model ({error!r})") from (
            error
        )
    if any(type(size) is not int or not 1 <= size < 2**31 for size in astuple(geometry)):
        raise ModelError(f"{where}: a size is no positive number: {geometry}")
    return geometry


def _folder_of(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # The name is too long, or names an unknown user's home.
        return None


def _folder_geometry(folder: Path) -> Geometry:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json; give a folder saved by save_pretrained")
    return geometry_from_config(_read_config(path), str(folder))


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error})") from error


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
    return f"folder-{digest.hexdigest()[:16]}"


def _hub_geometry(model_id: str, revision: str) -> Geometry:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        path = hf_hub_download(model_id, "config.json", revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"cannot read config.json of {model_id} at {revision} from the hub: {error}"
        ) from error
    return geometry_from_config(_read_config(Path(path)), f"{model_id}@{revision}")
