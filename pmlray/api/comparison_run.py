"""Wiring: one comparison put together from its parts, run on Ray, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pmlray.api.follower import Follower
from pmlray.api.machine import await_imports, machine_facts
from pmlray.api.search_run import ready_to_train, spooled_tracker
from pmlray.atomic_files import write_over
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.dtype import check_same_dtype
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import read_kept
from pmlray.errors import StoreError
from pmlray.study.comparison.comparison_search import Arena
from pmlray.study.comparison.results import compare_methods
from pmlray.study.search.plan import first_cost
from pmlray.study.search.progress import Progress

SPEC_FILE = "comparison.json"
# What runs of one store have in common; the rest of a spec only says which runs there are.
SAME = ("task", "model", "probe", "recipe", "memft", "evaluate")


@dataclass(frozen=True)
class ComparisonRun:
    """Where a comparison keeps its store, and how it reaches Ray and MLflow."""

    spec: CompareSpec
    search: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str
    address: str | None


def planned_runs(
    spec: CompareSpec, search: PreparedSearch, profile: ClusterProfile
) -> dict[str, Any]:
    """How many runs a comparison takes, and about how many gpu_seconds."""
    on_gpu = profile.gpus_per_pack > 0
    cost = first_cost(search.settled(on_gpu), on_gpu)
    mean = fmean(cost.predict(p) for p in spec.design_points())
    return {
        "compare_id": spec.compare_id,
        "tuning_runs": spec.n_tuning_runs,
        "compared_runs": spec.n_compared_runs,
        "gpu_seconds_about": round(spec.n_runs * mean, 1),
    }


def run_comparison(
    run: ComparisonRun, announce: Callable[[Progress], None]
) -> tuple[dict[str, Any], str]:
    """Run or continue a comparison; its machine-readable result and the same as text."""
    # Drawing libraries take a second to import, which the command line should not wait for.
    from pmlray.study.report.comparison_report import describe_comparison, write_comparison
    from pmlray.study.report.tables import without_credentials

    started = time.perf_counter()
    search = _settled(run)
    spec = run.spec.model_copy(update={"model": search.spec.model})
    search = ready_to_train(search)
    store = FileStore(run.store)
    with store.driver_lock() as driver, ExitStack() as following:
        claim_store(run.store, spec)
        tracker = spooled_tracker(store, run.tracking_uri, spec.compare_id, spec)
        follower = following.enter_context(Follower(run.store, announce, tracker))
        arena = Arena(spec, search, store, tracker, run.profile.max_pack_failures, follower)
        status = "FAILED"
        try:
            if not arena.is_over():
                follower.stage("starting Ray")
                follower(arena.progress())
                with ray_session(run.address):
                    from pmlray.backends.ray.run_packs import run_packs_on_ray

                    follower.stage("waiting for a worker")
                    run_packs_on_ray(search, arena, run.store, run.profile, driver)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            follower.stage("writing the report")
            comparison = compare_methods(spec, store.observations())
            facts = {
                "store": str(run.store),
                "tracking_uri": run.tracking_uri,
                "wall_seconds": time.perf_counter() - started,
                **machine_facts(),
            }
            await_imports()
            files = write_comparison(comparison, run.store / "report", facts)
            # Nothing is told of a study that is closed.
            following.close()
            tracker.finish(files, status)
    found = {**comparison.to_json(), **without_credentials(facts), "report": str(files[0])}
    return found, f"{describe_comparison(comparison)}\n{files[0]}"


def _settled(run: ComparisonRun) -> PreparedSearch:
    """The runs in the dtype that the store was begun with, else in the device's."""
    file = run.store / SPEC_FILE
    kept = read_kept(CompareSpec, file).model if file.is_file() else None
    return run.search.settled(run.profile.gpus_per_pack > 0, kept)


def claim_store(folder: Path, spec: CompareSpec) -> None:
    """Keep the spec in its store, which may hold more points, texts, rates and methods of one and
    the same comparison."""
    path = folder / SPEC_FILE
    if path.is_file():
        owner = read_kept(CompareSpec, path)
        differing = [name for name in SAME if getattr(owner, name) != getattr(spec, name)]
        was, now = ((m.id, m.revision) for m in (owner.model, spec.model))
        if "model" in differing and was == now:
            differing.remove("model")
        if differing:
            raise StoreError(
                f"{folder} holds the comparison {owner.compare_id}, whose {', '.join(differing)}"
                " differ; choose another --store"
            )
        check_same_dtype(folder, f"comparison {owner.compare_id}", owner.model, spec.model)
    write_over(path, spec.model_dump_json(indent=2).encode())
