"""What a LoRA parameter is worth in each place of a base, from real runs."""
