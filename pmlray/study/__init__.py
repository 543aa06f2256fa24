"""Searches without any framework: the law, the MemFT comparison, the result."""
