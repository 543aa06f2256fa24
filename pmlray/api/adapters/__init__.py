"""Adapters on disk: their base, and their export."""
