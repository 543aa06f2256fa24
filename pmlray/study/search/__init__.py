"""Search for a law, from its plan to its last pack; live, read from a store or replayed."""
