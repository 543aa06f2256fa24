"""The table of expected features names tests that are there, and counts right."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "FEATURES.md"
ROW = re.compile(r"^\| (\d+) \| [^|]+ \| (yes|part|no)\b[^|]*\| ?([^|]*)\|$", re.MULTILINE)


def test_every_yes_is_shown_by_a_test_that_is_there() -> None:
    rows = ROW.findall(TABLE.read_text(encoding="utf-8"))
    assert [int(number) for number, _, _ in rows] == list(range(1, 50))
    for number, status, shown in rows:
        named = re.fullmatch(r"`([\w/]+\.py)(?:::(test_\w+))?` ", shown)
        assert named is not None or (status == "no" and not shown.strip()), number
        if named is not None:
            file, test = named.groups()
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test or 'test_'}" in source, (number, file, test)


def test_the_count_is_that_of_the_rows() -> None:
    text = TABLE.read_text(encoding="utf-8")
    n = Counter(status for _, status, _ in ROW.findall(text))
    assert text.endswith(f"\n{n['yes']} yes, {n['part']} part, {n['no']} no.\n")
