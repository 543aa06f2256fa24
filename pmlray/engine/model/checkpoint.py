"""Weights and tokenizer of a base, loaded whole or not at all.

What is found wrong is bad input: ModelError, before anything is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.bases.checks import check_folder, check_ids, refuse_wrong_weights
from pmlray.config.bases.hub import hub_failures
from pmlray.config.bases.models import ModelSource
from pmlray.errors import ModelError

# Never execute anything from a model: no code of its own, and no weights in pickles.
PLAIN_TOKENIZER: dict[str, Any] = {"trust_remote_code": False}
PLAIN_WEIGHTS: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
# What transformers reads of a repository; not its subfolders, nor weights in other formats.
READ = ["*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors"]
SUBFOLDERS = ["*/*"]
# Errors of transformers and its parts on files that are damaged, or need a package that is missing.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def folder_of(model_id: str, source: ModelSource, revision: str | None) -> Path:
    """Return the folder of a base's files, which are downloaded from the hub if they are nowhere.

    Its headers are checked. ModelError where the base cannot be had, or is not what it seems.
    """
    folder = source.folder or _downloaded(model_id, source.revision or revision)
    check_folder(folder)
    return folder


def _downloaded(model_id: str, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(
                model_id, revision=revision, allow_patterns=READ, ignore_patterns=SUBFOLDERS
            )
        )
    except (*hub_failures(), ValueError) as error:
        raise ModelError(
            f"cannot download the base model {model_id} at {revision} from the hub: {error}"
        ) from error


def load_weights(model_id: str, folder: Path, dtype: str, **options: Any) -> Any:
    """Load the model in a folder.

    Args:
        model_id: the base's name, for errors.
        folder: its files.
        dtype: of the weights.
        options: others of `from_pretrained`.

    Returns:
        The transformers model, all of whose weights are those of the folder.

    Raises:
        ModelError: weights are missing, left over, of another shape or damaged, or need a package
            that is not there.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            # Tensors of another shape are then told by name, below, and not only logged.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **PLAIN_WEIGHTS,
            **options,
        )
    except DAMAGED as error:
        raise _unloadable("the base model", model_id, error) from error
    refuse_wrong_weights(
        sorted(found["missing_keys"]),
        sorted(found["unexpected_keys"]),
        [(n, tuple(a), tuple(b)) for n, a, b in sorted(found["mismatched_keys"])],
        str(folder),
    )
    return model


def load_tokenizer(model_id: str, folder: Path, rows: int) -> Any:
    """Load the tokenizer in a folder, as fast as `tokenizers`.

    Args:
        model_id: the base's name, for errors.
        folder: its files.
        rows: of the base's embedding.

    Returns:
        The transformers tokenizer, all of whose tokens have a row.

    Raises:
        ModelError: it cannot be loaded, or has tokens that the embedding has no row for.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), **PLAIN_TOKENIZER)
    except DAMAGED as error:
        raise _unloadable("the tokenizer of", model_id, error) from error
    except Exception as error:
        # `tokenizers` raises no narrower class; what has one is no damaged file.
        if type(error) is not Exception:
            raise
        raise _unloadable("the tokenizer of", model_id, error) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"the tokenizer of {model_id} is none that `tokenizers` computes; save its fast one as"
            f" tokenizer.json in {folder}"
        )
    check_ids(tokenizer.get_vocab(), rows, str(folder))
    return tokenizer


def _unloadable(what: str, model_id: str, error: Exception) -> ModelError:
    why = " ".join(f"{error}".split()) or type(error).__name__
    return ModelError(
        f"cannot load {what} {model_id}: {why}; give the model as its makers publish it, with whole"
        " float weights and its own tokenizer"
    )
