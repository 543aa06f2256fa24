"""One search: assembled from its parts, run on Ray, and reported."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pmlray.api.adapter_memory import check_memory
from pmlray.api.environment.machine import TRAIN_PACKAGES, await_imports, machine_facts
from pmlray.api.follower import Follower
from pmlray.api.records.facts import check_facts, check_same_records, check_same_start
from pmlray.api.stores import claim_search, read_result, settled_in
from pmlray.api.tracking import spooled_tracker, tracking_experiment_for
from pmlray.atomic_files import write_over
from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.study import OptunaPoints
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_store import FileStore
from pmlray.backends.store.usable import require_own
from pmlray.config import ClusterProfile
from pmlray.config.bases.models import TINY, require_present, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.secrets import without_credentials
from pmlray.config.stored_files import SUMMARY_FILE, RunFacts, stored_facts
from pmlray.design import CostModel
from pmlray.errors import INSTALL_TRAIN, ClusterAway, SpecError
from pmlray.notebook_html import facts_html
from pmlray.study.findings.result import SearchResult
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import design_settings, design_space, first_cost, first_pack
from pmlray.study.search.progress import Progress
from pmlray.study.search.replay_table import TableRunner, read_table
from pmlray.study.search.replayed_placements import replayed_place, table_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchRun:
    """Settings of one run of a search: its store, Ray address and MLflow URI.

    replay: a table of measurements to use instead of a cluster. reports_interrupted: write the
    report of a search that was interrupted, too, which takes many seconds on a busy machine.
    """

    search: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str
    address: str | None
    replay: Path | None = None
    reports_interrupted: bool = True


@dataclass(frozen=True, repr=False)
class SearchReport:
    """Result of a search with the answer in words, and facts of the run that measured it.

    answer: sentences, the answer first; page: the report's HTML file.

    Example:
        >>> found = Search.load("searches/smoke.yaml", store="runs/smoke").run()  # trains on Ray
        >>> print(*found.answer)
        Rank ...
    """

    result: SearchResult
    answer: tuple[str, ...]
    facts: RunFacts
    page: Path

    def __repr__(self) -> str:
        return f"SearchReport({self.result.spec.search_id}, page={str(self.page)!r})"

    def _repr_html_(self) -> str:
        told = {"answer": " ".join(self.answer), "report": self.page}
        return facts_html(self.result.spec.search_id, told | self.result.overview())

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only, as `pmlray search --json` prints them."""
        return {
            "answer": list(self.answer),
            **self.result.to_json(),
            **self.facts.to_json(),
            "report": str(self.page),
        }


def run_search(run: SearchRun, announce: Callable[[Progress], None]) -> SearchReport:
    """Run or continue a search and return its result, which is also in its store.

    Errors of the spec, the model or the budget are raised before Ray is started. Finished runs stay
    in the store even if an error follows.
    """
    started = time.perf_counter()
    search = settled_in(run.store, run.search, run.profile)
    spec = search.spec
    table = None if run.replay is None else read_table(run.replay)
    if table is not None and search.start is not None:
        raise SpecError(
            "the runs of a table began from scratch: without adapter.from_adapter they can be"
            " replayed"
        )
    if spec.design.acquisition == "gp" and find_spec("torch") is None:
        raise SpecError("design.acquisition gp is Optuna's GPSampler: it needs pip install torch")
    if table is not None:
        table = table_for(search, table, str(run.replay))
    else:
        search = ready_to_train(search)
        check_memory(search, spec.space.points(), run.profile, run.address)
    gpu = run.profile.gpus_per_pack > 0
    cost = first_cost(search, gpu)
    first_pack(search, cost)
    store = FileStore(run.store)
    with store.driver_lock() as driver, ExitStack() as following:
        claim_search(run.store, spec)
        if table is None:
            measured = store.observations()
            check_same_records(search, measured, run.store)
            check_same_start(search, measured, run.store)
        points = study_of(search, store, cost)
        experiment = tracking_experiment_for(run.profile, spec.name)
        tracker = spooled_tracker(store, run.tracking_uri, spec.search_id, spec, experiment)
        follower = following.enter_context(Follower(run.store, announce, tracker))
        known_packs = {times.pack_id for times in store.times()}
        law_search = LawSearch(
            search, store, points, tracker, cost, run.profile.max_pack_failures, follower
        )
        status, reports = "FAILED", True
        try:
            if (known := store.calibration()) is not None:
                law_search.calibrated(known)
            if table is not None:
                shared = spec.recipe.decay_share if spec.recipe.shares_trunks else None
                placed = partial(replayed_place, search)
                runner = TableRunner(table, store, spec.task.kind, shared, placed)
                while (pack := law_search.next_pack()) is not None:
                    law_search.absorb(runner.run(pack))
            elif not law_search.is_over():
                follower.stage("starting Ray")
                follower(law_search.progress())
                with ray_session(run.address):
                    from pmlray.backends.ray.run_packs import run_packs_on_ray

                    follower.stage("waiting for a worker")
                    run_packs_on_ray(search, law_search, run.store, run.profile, driver)
            status = "FINISHED"
        except KeyboardInterrupt:
            status, reports = "KILLED", run.reports_interrupted
            raise
        except ClusterAway:
            # Nothing was measured, so that there is nothing new to report.
            reports = False
            raise
        finally:
            pages: list[Path] = []
            if reports:
                follower.stage("writing the report")
                report = _report_run(run, started, known_packs)
                pages = [run.store / "report" / "report.html", run.store / "report" / "report.json"]
            # Stop the follower before the tracker is closed.
            following.close()
            tracker.finish(pages, status)
    return replace(report, facts=report.facts.model_copy(update={"tracking_page": tracker.page}))


def _report_run(run: SearchRun, started: float, known_packs: set[str]) -> SearchReport:
    """Write the report of a run that began at `started`, on a store that had `known_packs`."""
    wall = time.perf_counter() - started
    new = [times for times in FileStore(run.store).times() if times.pack_id not in known_packs]
    share = sum(times.training_seconds for times in new) / wall
    facts = RunFacts(
        store=str(run.store),
        tracking_uri=run.tracking_uri,
        wall_seconds=wall,
        # The seconds in a replayed table are not part of this run's wall time.
        training_share=share if run.replay is None else None,
        **machine_facts(),
    )
    await_imports()
    return report_store(run.store, facts)


def study_of(
    search: PreparedSearch, store: FileStore, cost: CostModel, storage_url: str | None = None
) -> OptunaPoints:
    """Rebuild the search's Optuna study from its store."""
    sampler = LawSampler(
        design_space(search),
        design_settings(search),
        search.spec.law.forms,
        cost,
        search.spec.budget.law_seconds,
        search.spec.law.fit_options(),
    )
    return OptunaPoints(
        search,
        sampler,
        store.folder,
        store.observations(),
        store.failures(),
        store.unfinished(),
        storage_url,
    )


def report_store(folder: Path, facts: RunFacts | None = None) -> SearchReport:
    """Write the report of a store and return its content.

    facts: of the run that just ended; without them, those of the last run are kept. StoreError
    where the folder is no store or cannot be written; the report of before is whole then.
    """
    # Imported late: drawing libraries take a second, which would delay a search's start.
    from pmlray.study.findings.answer import plain_answer
    from pmlray.study.report.search_report import write_report

    result = read_result(folder)
    require_own(folder, "report")
    summary_file = folder / SUMMARY_FILE
    shown = stored_facts(summary_file) if facts is None else facts
    page = write_report(result, folder / "report", shown.to_json())
    told = RunFacts(**without_credentials(shown.to_json()))
    report = SearchReport(result, tuple(plain_answer(result)), told, page)
    summary = {**report.to_json(), "facts": told.to_json()}
    write_over(summary_file, json.dumps(summary, indent=2).encode())
    return report


def _require_train_extra() -> None:
    missing = [name for name in TRAIN_PACKAGES if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"running a search here needs the train extra ({', '.join(missing)} missing); run:"
            f" {INSTALL_TRAIN}, or send the search to a cluster with pmlray submit"
        )


def ready_to_train(search: PreparedSearch) -> PreparedSearch:
    """Return the search with its base model available for training.

    The tiny random model is created on demand; any other must be present or on the hub. Raises
    SpecError or ModelError where a requirement of training is missing, DataError where records
    cannot be memorised as they are.
    """
    _require_train_extra()
    model = search.spec.model
    if model.id == TINY and search.source.folder is None:
        from pmlray.engine.model.pull import pull_model

        pull_model(TINY)
        search = replace(search, source=resolve_model(model.id, model.revision))
    require_present(model.id, search.source)
    check_facts(search)
    return search
