"""Readers of files that somebody else has written: a few hundred damaged inputs for each.

`scripts/fuzz.py` looks for more, guided by coverage.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmlray.errors import PmlrayError
from tests.fuzz_targets import TARGETS, seeds

pytestmark = pytest.mark.slow

SEEDS = {name: seeds(name) for name in TARGETS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def only_documented(name: str, content: bytes, folder: Path) -> None:
    try:
        TARGETS[name](content, folder)
    except PmlrayError:
        return


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_broke_readers_is_read_or_refused(name: str, tmp_path: Path) -> None:
    for content in SEEDS[name]:
        only_documented(name, content, tmp_path)


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A seed of which a part is replaced."""
    whole = draw(st.sampled_from([seed for seed in SEEDS[name] if len(seed) < 1500]))
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 20)))
    odd = [b"\x00", b"\xff", b"null", b"-1", b"0", b"1e999", b"NaN", b"9" * 400, b'"', b"[]", b"{}",
           b"\\ud800", b"../x", b"*a", b"&a ", b"<<: ", b"true", b""]  # fmt: skip
    part = draw(st.sampled_from(odd) | st.binary(max_size=8))
    return whole[:start] + part + whole[end:]


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(name))
    def check(content: bytes) -> None:
        only_documented(name, content, tmp_path)

    check()
