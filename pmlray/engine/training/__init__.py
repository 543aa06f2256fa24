"""The training loop: one optimiser step of a pack, again and again."""
