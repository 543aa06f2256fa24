"""A training process: its state, checkpoints and clock, its allocator and threads."""
