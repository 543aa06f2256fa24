"""Searches on known laws, driven in a test's own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.study import OptunaPoints
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import CostModel
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import design_settings, design_space
from pmlray.types import Pack
from tests.fakes import MemoryTracker, SyntheticRunner

COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)
# Enough of a search where no result depends on how well its law is known.
CHEAP = ("budget.gpu_seconds=60", "law={forms: [power, exponential_ceiling], n_bootstrap: 20}")


def start(
    search: PreparedSearch, folder: Path, tracker: MemoryTracker | None = None
) -> tuple[LawSearch, FileStore]:
    store = FileStore(folder)
    spec = search.spec
    sampler = LawSampler(
        design_space(search),
        design_settings(search),
        spec.law.forms,
        COST,
        spec.budget.law_seconds,
        spec.law.fit_options(),
    )
    points = OptunaPoints(
        search, sampler, folder, store.observations(), store.failures(), store.unfinished()
    )
    law_search = LawSearch(
        search, store, points, tracker or MemoryTracker(), COST, 2, lambda progress: None
    )
    return law_search, store


def unlimited(pack: Pack | None) -> Pack:
    """A pack as it is chosen; what it may spend is known when it is handed out."""
    assert pack is not None
    return replace(pack, gpu_seconds=None)


def run_to_end(law_search: LawSearch, runner: SyntheticRunner) -> None:
    while (pack := law_search.next_pack()) is not None:
        law_search.absorb(runner.run(pack))


def exhaustive(search: PreparedSearch, folder: Path) -> FileStore:
    store = FileStore(folder)
    runs = tuple(
        search.plan_run(point, "sft", *pair, "law")
        for point in search.spec.space.points()
        for pair in search.spec.replicates()
    )
    SyntheticRunner(store).run(Pack(0, runs))
    return store
