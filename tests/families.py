"""Tiny bases with random weights, of many families: two layers, windows shorter than the texts."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.5], "long_factor": [4.0, 5.0], "partial_rotary_factor": 0.5,
}  # fmt: skip

# Name of a case: model_type, and what differs from SIZES or GPT.
FAST: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**WINDOW, "head_dim": 16}),
    "qwen2": ("qwen2", {**WINDOW, **MIXED, "use_sliding_window": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "granite": ("granite", {
        "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.2,
        "logits_scaling": 3.0}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", WINDOW),
    "phi4-mini": ("phi3", {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
}  # fmt: skip
GENERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", GPT),
    "gpt-neox": ("gpt_neox", {}),
    "falcon": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "phi": ("phi", HEADS),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "mpt": ("mpt", {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "gemma4": ("gemma4_text", {**WINDOW, **MIXED, "head_dim": 8, "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mixtral": ("mixtral", {**WINDOW, "num_local_experts": 4}),
    "qwen2-moe": ("qwen2_moe", {
        **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "olmoe": ("olmoe", {**EXPERTS, "num_experts": 4}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "starcoder2": ("starcoder2", WINDOW),
    "stablelm": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "deepseek-v3": ("deepseek_v3", {
        **EXPERTS, **HEADS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "first_k_dense_replace": 1}),
    "gpt-oss": ("gpt_oss", {**WINDOW, "num_local_experts": 4, "head_dim": 8}),
}  # fmt: skip


def tiny_model(case: str, vocab: int = VOCAB) -> Any:
    """Return a case's model with its random weights, in fp32."""
    kind, different = (FAST | GENERAL)[case]
    torch.manual_seed(0)
    sizes = {} if kind in ("gpt2", "gptj") else SIZES
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**(sizes | different | {"vocab_size": vocab}))
    )
    with torch.no_grad():
        # Biases and norms as made would be 0 and 1, and could be left out unnoticed.
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn(weight.shape))
    model.config.architectures = [type(model).__name__]
    return model.eval()
