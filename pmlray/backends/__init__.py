"""Adapters to external frameworks, one folder each."""
