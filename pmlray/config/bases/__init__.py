"""Base models: found by name, and checked by their headers before anything is loaded."""
