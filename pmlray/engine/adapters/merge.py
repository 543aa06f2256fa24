"""Adapters merged into the weights of their base, as a model that transformers loads alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from torch import Tensor

from pmlray.config.bases.model_spec import Dtype, Model
from pmlray.config.bases.models import ModelSource
from pmlray.config.bases.safetensors_header import read_json
from pmlray.engine.adapters.foreign_adapter import PEFT_ERRORS, ForeignAdapter
from pmlray.engine.model.checkpoint import folder_of, load_weights
from pmlray.errors import ModelError, StoreError

# Logits of this text tell whether the merged model is the base with its adapter.
PROBE = "An adapter that was merged answers as it did beside its base."
# Largest difference of the logits, as a share of their size: what merging in float32 leaves, and
# what rounding all weights to eight bits of precision adds.
TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.1}
# Beside the weights: the tokenizer, the settings, and the headers.
BESIDE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Merged:
    """A merged model on the disk; `n_bytes` of all its files.

    logits_off: how far its logits on PROBE are from those of the adapter beside its base, as a
    share of their size.
    """

    folder: Path
    dtype: Dtype
    n_bytes: int
    logits_off: float


def stored_dtype(folder: Path) -> Dtype:
    """Return the dtype to keep a base's own weights in: bfloat16 if its config says so, else
    float32, which holds all others."""
    config = read_json(folder / "config.json")
    told = config.get("dtype") or config.get("torch_dtype")
    return "bfloat16" if told == "bfloat16" else "float32"


def merge_adapter(
    adapter: ForeignAdapter, model: Model, source: ModelSource, dtype: Dtype | None, out: Path
) -> Merged:
    """Merge an adapter into its base and save the model with its tokenizer.

    Weights are added in float32, then rounded to `dtype`, and what was saved is loaded again and
    compared with the adapter beside its base.

    Args:
        adapter: as `read_mergeable` reads it.
        model, source: its base, in the dtype that it was trained in.
        dtype: of the saved weights; None: that of the base's own.
        out: a new folder, which appears only when it is whole.

    Returns:
        What was saved, and how far its logits are off.

    Raises:
        ModelError: the base cannot be loaded, does not fit the adapter, or cannot take it in.
        StoreError: the disk has too little space.
        OSError: `out` cannot be written.

    Example:
        >>> adapter = read_mergeable(Path("runs/rooms/adapter"))
        >>> merged = merge_adapter(adapter, model, source, "float32", Path("rooms-merged"))
        >>> merged.logits_off < 1e-3
        True
    """
    if dtype is None:
        dtype = stored_dtype(folder_of(model.id, source, model.revision))
    base = adapter.load_base(model, source, torch.device("cpu"))
    base.model.float()
    adapted = adapter.adapted(base)
    ids = torch.tensor([base.tokenizer(PROBE)["input_ids"]])
    wanted = _logits(adapted, ids)
    try:
        merged = adapted.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
    except PEFT_ERRORS as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{adapter.folder}: PEFT cannot merge the adapter: {why}") from error
    _check_space(merged, out)
    part = out.with_name(f".{out.name}.{token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        _save(merged, base.tokenizer, part)
        del base, adapted, merged
        found = _logits(load_weights(str(out), part, dtype).float(), ids)
        off = float((found - wanted).norm() / wanted.norm())
        if not off <= TOLERANCE[dtype]:
            raise ModelError(
                f"{adapter.folder}: merged into its base the adapter answers otherwise (logits are"
                f" off by {100 * off:.3g} % of their size in {dtype}); use it beside its base"
                + (", or give --dtype float32" if dtype != "float32" else "")
            )
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Merged(out, dtype, sum(file.stat().st_size for file in out.iterdir()), off)


@torch.no_grad()
def _logits(model: Any, ids_BT: Tensor) -> Tensor:
    return model.eval()(input_ids=ids_BT).logits.float()


def _check_space(model: Any, out: Path) -> None:
    """Raise StoreError where the disk has no room for a model's weights."""
    needed = BESIDE_BYTES + sum(p.numel() * p.element_size() for p in model.parameters())
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise StoreError(
            f"{out} needs {needed / 2**30:.2f} GiB, and {above} has {free / 2**30:.2f} GiB free;"
            " make room, or choose another disk"
        )


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    except ValueError as error:
        raise ModelError(f"transformers cannot save the merged model: {error}") from error
