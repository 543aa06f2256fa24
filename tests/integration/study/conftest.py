"""Fixtures of the unit tests, for whole searches and their pages."""

from tests.unit.conftest import make_search, search_file, short_pages
from tests.unit.study.conftest import (
    make_result,
    placed_folder,
    placed_page,
    placed_result,
    placed_specs,
    result,
)

__all__ = [
    "make_result",
    "make_search",
    "placed_folder",
    "placed_page",
    "placed_result",
    "placed_specs",
    "result",
    "search_file",
    "short_pages",
]
