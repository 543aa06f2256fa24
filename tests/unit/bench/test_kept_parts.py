"""A long benchmark in sittings: what is measured is kept, and only the rest is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.common.resumable import ResumableParts, SittingOver

ABOUT = {"machine": "one", "repeats": 5}


def benchmark(kept: ResumableParts, measured: list[str]) -> list[float]:
    def measure(key: str) -> float:
        measured.append(key)
        return len(key) / 3

    return [kept.measured(key, lambda key=key: measure(key)) for key in ("a", "bb", "ccc")]


def test_sittings_measure_every_part_once(tmp_path: Path) -> None:
    file, measured = tmp_path / "parts.jsonl", list[str]()
    for expected in (["a"], ["a", "bb"]):
        with pytest.raises(SittingOver):
            benchmark(ResumableParts(file, ABOUT, 1), measured)
        assert measured == expected
    for most in (1, 0, None):
        assert benchmark(ResumableParts(file, ABOUT, most), measured) == [1 / 3, 2 / 3, 1.0]
        assert measured == ["a", "bb", "ccc"]


def test_nothing_is_kept_without_a_file(tmp_path: Path) -> None:
    measured: list[str] = []
    for _ in range(2):
        benchmark(ResumableParts(None, ABOUT, None), measured)
    assert len(measured) == 6 and not list(tmp_path.iterdir())


def test_parts_of_another_machine_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "parts.jsonl"
    ResumableParts(file, ABOUT, None).measured("a", lambda: 1)
    with pytest.raises(ValueError, match="name another file"):
        ResumableParts(file, ABOUT | {"machine": "two"}, None)
