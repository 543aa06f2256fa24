"""Adapter files: PEFT's own format for `down_proj`, pmlray's for the paper's `mlp` placement."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pmlray.config.bases.models import loadable_name
from pmlray.config.search_spec import Probe

WEIGHTS_FILE = "adapter_model.safetensors"
MLP_CONFIG_FILE = "pmlray_adapter.json"


def save_adapter(
    folder: Path,
    probe: Probe,
    weights: tuple[Tensor, Tensor],
    base_id: str,
    revision: str | None = None,
) -> None:
    """Write one adapter; a `down_proj` folder loads with `peft.PeftModel.from_pretrained`.

    Args:
        folder: receives the files; made if missing.
        probe: placement and layer of the adapter.
        weights: A (X, r) and B (r, D), scale 1; X is the adapter's input width, D the hidden size.
        base_id: name of the base model; a `down_proj` adapter's config names it by its hub id or
            its folder, by which PEFT finds it.
        revision: of the base on the hub.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    a, b = (w.detach().cpu().float() for w in weights)
    rank = a.shape[1]
    if probe.placement == "down_proj":
        # Imported here, as it takes seconds and the other placement does not need it.
        from peft import LoraConfig

        at = f"base_model.model.model.layers.{probe.layer}.mlp.down_proj"
        tensors = {f"{at}.lora_A.weight": a.T.contiguous(), f"{at}.lora_B.weight": b.T.contiguous()}
        LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=loadable_name(base_id),
            revision=revision,
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules=["down_proj"],
            layers_to_transform=[probe.layer],
            inference_mode=True,
        ).save_pretrained(str(folder))
    else:
        tensors = {"A": a.contiguous(), "B": b.contiguous()}
        config = {"base_model": base_id, "lora_rank": rank, **probe.model_dump()}
        (folder / MLP_CONFIG_FILE).write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / WEIGHTS_FILE)
