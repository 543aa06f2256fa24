"""Folders of adapters in PEFT's layout, made without torch: random factors in the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.models import KNOWN_MODELS, TINY

RANK, ALPHA = 2, 6
AT = Placement((1, 3), ("self_attn.q_proj", "mlp.down_proj"))
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": TINY,
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj", "down_proj"],
    "layers_to_transform": [1, 3],
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "lora_dropout": 0.1,
}


def name_of(layer: int, module: str, factor: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight"


def factors(seed: int = 0, placement: Placement = AT) -> dict[str, Any]:
    drawn, shapes = np.random.default_rng(seed), KNOWN_MODELS[TINY].modules
    found = {}
    for site in placement.sites:
        width, out = shapes[site.module]
        for factor, shape in {"A": (RANK, width), "B": (out, RANK)}.items():
            values = drawn.standard_normal(shape).astype(np.float32)
            found[name_of(site.layer, site.module, factor)] = values
    return found


def save_start(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write an adapter; keys of its config that are given as ... are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in {**CONFIG, **config}.items() if v is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    save_file(factors() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder
