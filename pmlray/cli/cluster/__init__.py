"""Commands for searches on a Ray cluster."""
