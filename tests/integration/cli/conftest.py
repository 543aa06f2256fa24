"""Fixtures of the unit tests, for whole commands."""

from tests.unit.conftest import make_search, search_file, short_pages

__all__ = ["make_search", "search_file", "short_pages"]
