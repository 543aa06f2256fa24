"""Results in words for a terminal, from their JSON objects."""
