"""Keys of PEFT's `adapter_config.json`, and the modules that it names, read without PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# pmlray's own config, of adapters of the paper's block.
BLOCK_CONFIG_FILE = "pmlray_adapter.json"
# Keys of PEFT's LoraConfig that do not change what a trained adapter of plain LoRA computes.
INERT_KEYS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision",
}  # fmt: skip
# Keys of what is more than plain LoRA, unless they are empty.
OFF_KEYS = {
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "kasa_config",
    "layer_replication", "layers_pattern", "loftq_config", "lora_bias", "lora_ga_config",
    "megatron_config", "modules_to_save", "monteclora_config", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "velora_config",
}  # fmt: skip
# PEFT finds a module's layer by the first number in its name.
LAYER_IN_NAME = re.compile(r".*?\.[^.]*\.(\d+)\.")


def is_target(config: Mapping[str, Any], name: str) -> bool:
    """Return whether PEFT adapts the linear module of this name in a model's layers.

    As `check_target_module_exists` of PEFT, without `exclude_modules` and `layers_pattern`. Raises
    `re.error` or TypeError where target_modules is no pattern or list of names.
    """
    targets, layers = config["target_modules"], config.get("layers_to_transform")
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or re.fullmatch(targets, name) is not None
    if name in targets:
        return True
    if not any(name.endswith(f".{target}") for target in targets):
        return False
    if layers is None or layers == []:
        return True
    found = LAYER_IN_NAME.match(name)
    among = [layers] if isinstance(layers, int) else layers
    return found is not None and int(found.group(1)) in among
