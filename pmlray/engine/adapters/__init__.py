"""Many LoRA adapters at once: their tensors, AdamW, files and cards."""
