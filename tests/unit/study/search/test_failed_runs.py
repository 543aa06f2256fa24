"""What a new start makes of failed runs: it tries what machines failed, not what failed itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.config.prepared_search import PreparedSearch
from pmlray.types import PlannedRun
from tests.fakes import SyntheticRunner
from tests.searches import run_to_end, start

WHOLE_GRID = (
    "design={acquisition: full_grid, n_initial: 2, pack_size: 4}",
    "space={lora_rank: [1, 2], seq_len: [16, 32], train_steps: [100]}", "memft=null",
    "law={forms: [power], n_bootstrap: 20}",
)  # fmt: skip


def small(run: PlannedRun) -> bool:
    return run.point.lora_rank == 1


@pytest.mark.parametrize("infrastructure", [True, False])
def test_a_new_start_tries_what_machines_failed_once_more(
    make_search: Callable[..., PreparedSearch], tmp_path: Path, infrastructure: bool
) -> None:
    search, folder = make_search(*WHOLE_GRID), tmp_path / "store"
    law_search, store = start(search, folder)
    first = SyntheticRunner(store, fails=small, infrastructure=infrastructure)
    run_to_end(law_search, first)
    # Within one start nothing is tried twice.
    assert max(Counter(first.ran).values()) == 1 and len(first.ran) == 8
    failed = {f.run_key for f in store.failures()}
    assert len(failed) == 4 and len(store.observations()) == 4

    again, store = start(search, folder)
    second = SyntheticRunner(store)
    run_to_end(again, second)
    assert set(second.ran) == (failed if infrastructure else set())
    assert len(store.observations()) == (8 if infrastructure else 4)
    assert len(store.failures()) == 4

    third, store = start(search, folder)
    assert third.next_pack() is None
