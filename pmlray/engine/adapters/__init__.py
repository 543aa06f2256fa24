"""LoRA adapters packed into shared tensors: AdamW, files and model cards."""
