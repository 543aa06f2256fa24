"""Results of a search: its answer in words, recall, MemFT pairs, stubborn tokens."""
