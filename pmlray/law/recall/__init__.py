"""The law of recall: the share of tokens, prefixes and texts that a mean loss recalls."""
