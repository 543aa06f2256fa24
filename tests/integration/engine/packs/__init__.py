"""Whole packs, trained in this process."""
