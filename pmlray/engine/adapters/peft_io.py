"""Adapter files: PEFT's own format, and pmlray's for the paper's block, which PEFT lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pmlray.config.bases.models import loadable_name
from pmlray.config.placement import Placement, Site
from pmlray.engine.adapters.packed_lora import AdapterWeights

WEIGHTS_FILE = "adapter_model.safetensors"
MLP_CONFIG_FILE = "pmlray_adapter.json"
# Of a linear module in PEFT's weights.
PEFT_NAME = "base_model.model.model.layers.{layer}.{module}"


def save_adapter(
    folder: Path,
    placement: Placement,
    weights: AdapterWeights,
    base_id: str,
    revision: str | None = None,
) -> None:
    """Write one adapter; a folder of linear modules loads with `peft.PeftModel.from_pretrained`.

    Args:
        folder: receives the files; made if missing.
        placement: sites of the adapter, and its alpha.
        weights: A (X, r) and B (r, D) by site, without the scale; X and D are the site's widths.
        base_id: name of the base model; PEFT's config names it by its hub id or its folder, by
            which PEFT finds it.
        revision: of the base on the hub.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {
        site: (a.detach().cpu().float(), b.detach().cpu().float())
        for site, (a, b) in weights.items()
    }
    rank = next(iter(factors.values()))[0].shape[1]
    if placement.is_block:
        tensors = _block_tensors(factors)
        (folder / MLP_CONFIG_FILE).write_text(
            json.dumps({"base_model": base_id, **_block_config(placement, rank)}, indent=2)
        )
    else:
        tensors = {}
        for site, (a, b) in factors.items():
            at = PEFT_NAME.format(layer=site.layer, module=site.module)
            tensors[f"{at}.lora_A.weight"] = a.T.contiguous()
            tensors[f"{at}.lora_B.weight"] = b.T.contiguous()
        _save_peft_config(folder, placement, rank, base_id, revision)
    save_file(tensors, folder / WEIGHTS_FILE)


def _save_peft_config(
    folder: Path, placement: Placement, rank: int, base_id: str, revision: str | None
) -> None:
    # Imported here, as it takes seconds and the paper's block does not need it.
    from peft import LoraConfig

    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=loadable_name(base_id),
        revision=revision,
        **peft_settings(placement, rank),
        inference_mode=True,
    ).save_pretrained(str(folder))


def peft_settings(placement: Placement, lora_rank: int) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig for an adapter of linear modules."""
    alpha = placement.lora_alpha(lora_rank)
    return {
        "r": lora_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": [module.rpartition(".")[2] for module in placement.modules],
        "layers_to_transform": list(placement.layers),
        "use_rslora": placement.use_rslora,
    }


def _block_config(placement: Placement, rank: int) -> dict[str, Any]:
    """Return pmlray's config of an adapter of the paper's blocks."""
    config: dict[str, Any] = {"lora_rank": rank, "placement": "mlp"}
    if placement.kept_site is not None:
        config["layer"] = placement.layers[0]
    else:
        config["layers"] = list(placement.layers)
    if placement.scale(rank) != 1:
        config["scale"] = placement.scale(rank)
    return config


def _block_tensors(factors: Mapping[Site, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    if len(factors) == 1:
        ((a, b),) = factors.values()
        return {"A": a.contiguous(), "B": b.contiguous()}
    named = {}
    for site, (a, b) in factors.items():
        named |= {f"{site.layer}.A": a.contiguous(), f"{site.layer}.B": b.contiguous()}
    return named
