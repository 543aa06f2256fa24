"""Adapters to begin with are read without PEFT as PEFT reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.adapters.peft_config import is_target
from pmlray.errors import ModelError
from tests.integration.engine.test_start import KINDS, base_of, read, saved


def targets(**more: Any) -> dict[str, Any]:
    return {"layers_to_transform": None, **more}


@pytest.mark.parametrize(
    "config",
    [
        *[{"layers_to_transform": None, **kind} for kind in KINDS.values()],
        targets(target_modules=["proj"]),
        targets(target_modules=["self_attn"]),
        targets(target_modules="ALL-linear"),
        targets(target_modules=r".*q_proj"),
        targets(target_modules=["layers.1.mlp.up_proj", "down_proj"]),
        targets(target_modules=["model.layers.0.mlp.up_proj"], layers_to_transform=[2]),
        targets(target_modules=["up_proj"], layers_to_transform=[]),
        targets(target_modules=["up_proj"], layers_to_transform=[0, 3]),
    ],
    ids=str,
)
def test_the_same_modules_as_by_peft(config: dict[str, Any], tiny_folder: str) -> None:
    own = {key: value for key, value in config.items() if key != "use_rslora"}
    model = base_of(tiny_folder)
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    found = {name for name in linear if ".layers." in name and is_target(own, name)}
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**own))
    except ValueError:
        # It names no linear module.
        assert not found
    else:
        assert found == set(adapted.base_model.targeted_module_names)


def test_a_tokenizer_beside_it_has_the_bases_tokens(tiny_folder: str, tmp_path: Path) -> None:
    """As training scripts save it, and with a token that the weights have no embedding of."""
    saved(tmp_path, tiny_folder, **KINDS["all-linear"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(tmp_path)
    read(tmp_path, tiny_folder)
    tokenizer.add_tokens(["<fact>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the base's differ in '<fact>'"):
        read(tmp_path, tiny_folder)
