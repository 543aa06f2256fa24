"""DeepSpeed as the engine of training: stage 0 for packs, ZeRO-3 for larger bases."""
