"""Rank for a set of records: the request, its cost, the loss it needs, the choice, the card."""
