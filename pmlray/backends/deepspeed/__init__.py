"""DeepSpeed as the training engine: stage 0 for packs, ZeRO-3 for larger bases."""
