"""The outside world, one framework a folder."""
