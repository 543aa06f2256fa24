"""Runtime of a training process: state, checkpoints, clock, allocator and threads."""
