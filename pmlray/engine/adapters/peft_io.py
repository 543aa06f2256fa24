"""Adapter files: PEFT's own format, and pmlray's for the paper's block, which PEFT lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from pmlray.config.adapters.placement import Placement, Site
from pmlray.config.bases.geometry import LLAMAS_LAYERS
from pmlray.config.bases.models import loadable_name
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.model.frozen_base import BaseModel
from pmlray.engine.model.general_base import GeneralBase

WEIGHTS_FILE = "adapter_model.safetensors"
MLP_CONFIG_FILE = "pmlray_adapter.json"


@dataclass(frozen=True, slots=True)
class PeftNames:
    """How PEFT names the linear modules of a base's decoder layers.

    Args:
        layers_path: name of the model's list of decoder layers.
        whole: whether target_modules holds names within the layer, where their last parts alone
            could be those of other modules as well.
        transposed: whether the modules keep their weights as (input, output), as GPT-2's Conv1D.
    """

    layers_path: str = LLAMAS_LAYERS
    whole: bool = False
    transposed: bool = False

    @classmethod
    def of(cls, base: BaseModel, placement: Placement) -> PeftNames:
        """Return the names of a base's modules, for an adapter at some of its sites."""
        if not isinstance(base, GeneralBase) or placement.is_block:
            return cls(base.layers_path)
        modules: list[Any] = [base.module_at(site) for site in placement.sites]
        return cls(
            base.layers_path,
            whole=True,
            transposed=any(isinstance(site.module, Conv1D) for site in modules),
        )

    def of_site(self, site: Site) -> str:
        """Return the name of a site's module in PEFT's weights."""
        return f"base_model.model.{self.layers_path}.{site.layer}.{site.module}"

    def targets(self, modules: Sequence[str]) -> list[str]:
        """Return `target_modules` of PEFT's config."""
        return [*modules] if self.whole else [name.rpartition(".")[2] for name in modules]


LLAMAS_NAMES = PeftNames()


def save_adapter(
    folder: Path,
    placement: Placement,
    weights: AdapterWeights,
    base_id: str,
    revision: str | None = None,
    names: PeftNames = LLAMAS_NAMES,
) -> None:
    """Write one adapter; a folder of linear modules loads with `peft.PeftModel.from_pretrained`.

    Args:
        folder: receives the files; made if missing.
        placement: sites of the adapter, and its alpha.
        weights: A (X, r) and B (r, D) by site, without the scale; X and D are the site's widths.
        base_id: name of the base model; PEFT's config names it by its hub id or its folder, by
            which PEFT finds it.
        revision: of the base on the hub.
        names: of the base's modules for PEFT.

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
            at = names.of_site(site)
            tensors[f"{at}.lora_A.weight"] = a.T.contiguous()
            tensors[f"{at}.lora_B.weight"] = b.T.contiguous()
        _save_peft_config(folder, peft_settings(placement, rank, names), base_id, revision)
    save_file(tensors, folder / WEIGHTS_FILE)


def _save_peft_config(
    folder: Path, settings: dict[str, Any], base_id: str, revision: str | None
) -> None:
    # Imported here, as it takes seconds and the paper's block does not need it.
    from peft import LoraConfig

    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=loadable_name(base_id),
        revision=revision,
        **settings,
        inference_mode=True,
    ).save_pretrained(str(folder))


def peft_settings(
    placement: Placement, lora_rank: int, names: PeftNames = LLAMAS_NAMES
) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig for an adapter of linear modules."""
    alpha = placement.lora_alpha(lora_rank)
    return {
        "r": lora_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": names.targets(placement.modules),
        "layers_to_transform": list(placement.layers),
        "use_rslora": placement.use_rslora,
        # PEFT would set it itself, with a warning.
        **({"fan_in_fan_out": True} if names.transposed else {}),
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
