"""Fixtures of the engine's unit tests, for tests of it beside PEFT and transformers."""

from tests.unit.conftest import make_placed_search, make_search, search_file
from tests.unit.engine.conftest import fresh_tiny, tiny, tiny_at, tiny_folder

__all__ = [
    "fresh_tiny", "make_placed_search", "make_search", "search_file", "tiny", "tiny_at",
    "tiny_folder",
]  # fmt: skip
