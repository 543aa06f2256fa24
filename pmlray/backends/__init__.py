"""The outside world, one framework a file."""
