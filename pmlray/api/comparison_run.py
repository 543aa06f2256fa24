"""One comparison: assembled from its parts, run on Ray, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pmlray.api.adapter_memory import check_memory
from pmlray.api.environment.machine import await_imports, machine_facts
from pmlray.api.follower import Follower
from pmlray.api.records.facts import check_same_records, check_same_start
from pmlray.api.search_run import ready_to_train
from pmlray.api.stores import claim_comparison
from pmlray.api.tracking import spooled_tracker, tracking_experiment_for
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import COMPARISON_FILE, RunFacts, read_stored
from pmlray.errors import ClusterAway
from pmlray.notebook_html import facts_html, rows_html
from pmlray.study.comparison.comparison_search import ComparisonSearch
from pmlray.study.comparison.results import MethodComparison, compare_methods, method_metrics
from pmlray.study.search.plan import first_cost
from pmlray.study.search.progress import Progress


@dataclass(frozen=True)
class ComparisonRun:
    """Settings of one run of a comparison: its store, Ray address and MLflow URI."""

    spec: CompareSpec
    search: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str
    address: str | None


@dataclass(frozen=True)
class ComparisonPlan:
    """Runs that a comparison takes, and their approximate gpu_seconds, by rates that are guesses.

    `tuning_runs` find each method's rate before `compared_runs` are made with it. `n_records`,
    those that differ, and `n_duplicates` are of a records file, None without one.

    Example:
        >>> Comparison.load("searches/comparisons/smoke.yaml").plan().tuning_runs
        12
    """

    compare_id: str
    tuning_runs: int
    compared_runs: int
    gpu_seconds_about: float
    n_records: int | None = None
    n_duplicates: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only, as `pmlray compare --dry-run --json` prints them."""
        names = ("compare_id", "n_records", "n_duplicates", "tuning_runs", "compared_runs")
        found = {name: getattr(self, name) for name in (*names, "gpu_seconds_about")}
        return {name: value for name, value in found.items() if value is not None}

    def _repr_html_(self) -> str:
        return facts_html(self.compare_id, self.to_json())


@dataclass(frozen=True, repr=False)
class ComparisonReport:
    """Result of a comparison with its table as text, and facts of the run that measured it.

    page: the report's HTML file.

    Example:
        >>> found = Comparison.load("searches/comparisons/smoke.yaml").run()  # trains on Ray
        >>> found.page.name
        'comparison.html'
    """

    result: MethodComparison
    text: str
    facts: RunFacts
    page: Path

    def __repr__(self) -> str:
        return f"ComparisonReport({self.result.compare_id}, page={str(self.page)!r})"

    def _repr_html_(self) -> str:
        lines = [[line] for line in self.text.splitlines()]
        return rows_html(self.result.compare_id, ("methods compared",), lines)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only, as `pmlray compare --json` prints them."""
        return {**self.result.to_json(), **self.facts.to_json(), "report": str(self.page)}


def planned_runs(
    spec: CompareSpec, search: PreparedSearch, profile: ClusterProfile
) -> ComparisonPlan:
    """Return the number of runs that a comparison takes, and their approximate gpu_seconds."""
    on_gpu = profile.gpus_per_pack > 0
    cost = first_cost(search.settled(on_gpu), on_gpu)
    mean = fmean(cost.predict(p) for p in spec.design_points())
    return ComparisonPlan(
        spec.compare_id,
        spec.n_tuning_runs,
        spec.n_compared_runs,
        round(spec.n_runs * mean, 1),
        **search.counts(),
    )


def run_comparison(run: ComparisonRun, announce: Callable[[Progress], None]) -> ComparisonReport:
    """Run or continue a comparison and return its result, which is also in its store."""
    # Imported late: drawing libraries take a second, which would delay the command line.
    from pmlray.config.secrets import without_credentials
    from pmlray.study.report.comparison_report import describe_comparison, write_comparison

    started = time.perf_counter()
    search = _settled(run)
    spec = run.spec.model_copy(update={"model": search.spec.model})
    search = ready_to_train(search)
    check_memory(search, search.spec.space.points(), run.profile, run.address)
    store = FileStore(run.store)
    with store.driver_lock() as driver, ExitStack() as following:
        claim_comparison(run.store, spec)
        measured = store.observations()
        check_same_records(search, measured, run.store)
        check_same_start(search, measured, run.store)
        experiment = tracking_experiment_for(run.profile, spec.name)
        tracker = spooled_tracker(store, run.tracking_uri, spec.compare_id, spec, experiment)
        follower = following.enter_context(Follower(run.store, announce, tracker))
        comparing = ComparisonSearch(
            spec, search, store, tracker, run.profile.max_pack_failures, follower
        )
        status, reports = "FAILED", True
        try:
            if not comparing.is_over():
                follower.stage("starting Ray")
                follower(comparing.progress())
                with ray_session(run.address):
                    from pmlray.backends.ray.run_packs import run_packs_on_ray

                    follower.stage("waiting for a worker")
                    run_packs_on_ray(search, comparing, run.store, run.profile, driver)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except ClusterAway:
            # Nothing was measured, so that there is nothing new to report.
            reports = False
            raise
        finally:
            files: tuple[Path, ...] = ()
            if reports:
                follower.stage("writing the report")
                comparison = compare_methods(spec, store.observations())
                facts = RunFacts(
                    store=str(run.store),
                    tracking_uri=run.tracking_uri,
                    wall_seconds=time.perf_counter() - started,
                    **machine_facts(),
                )
                await_imports()
                files = write_comparison(comparison, run.store / "report", facts.to_json())
                spent = comparing.progress().gpu_seconds_spent
                tracker.law(method_metrics(comparison.results), spent)
            # Stop the follower before the tracker is closed.
            following.close()
            tracker.finish(files, status)
    text = describe_comparison(comparison)
    told = RunFacts(**without_credentials(facts.to_json()), tracking_page=tracker.page)
    return ComparisonReport(comparison, text, told, Path(files[0]))


def _settled(run: ComparisonRun) -> PreparedSearch:
    """Return the search in the dtype that the store was begun with, else in the device's."""
    file = run.store / COMPARISON_FILE
    kept = read_stored(CompareSpec, file).model if file.is_file() else None
    return run.search.settled(run.profile.gpus_per_pack > 0, kept)
