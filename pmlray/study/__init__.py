"""A whole search: the law, the MemFT comparison, the result; without any framework."""
