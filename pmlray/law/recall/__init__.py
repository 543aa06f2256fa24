"""Law of recall: the share of tokens, prefixes and texts recalled at a mean loss."""
