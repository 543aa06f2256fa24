"""Fixtures of the unit tests, for whole searches."""

from tests.unit.conftest import make_search, search_file

__all__ = ["make_search", "search_file"]
