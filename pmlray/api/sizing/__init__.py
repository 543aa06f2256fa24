"""Sizing: the rank that a set of records needs, planned, measured, trained and checked."""
