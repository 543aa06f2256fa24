"""Wiring: one search put together from its parts, run on Ray, and reported."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pmlray.api.follower import Follower
from pmlray.api.machine import TRAIN_PACKAGES, await_imports, machine_facts
from pmlray.atomic_files import write_over
from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.spooled_tracker import Mirror, SpooledTracker, local_tracking_uri
from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.study import OptunaPoints
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.base_models import TINY, require_present, resolve_model
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.dtype import check_same_dtype
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import kept_facts, read_kept
from pmlray.design import CostModel
from pmlray.errors import INSTALL_TRAIN, SpecError, StoreError
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.report.tables import without_credentials
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import design_settings, design_space, first_cost, first_pack
from pmlray.study.search.progress import Progress
from pmlray.study.search.replay_table import TableRunner, read_table

log = logging.getLogger(__name__)

SPEC_FILE = "search.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class SearchRun:
    """Where one run of a search keeps its store, and how it reaches Ray and MLflow.

    replay: a table that answers instead of a cluster.
    """

    search: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str
    address: str | None
    replay: Path | None = None


def default_store(search: PreparedSearch, profile: ClusterProfile) -> Path:
    """`profile.storage`, else PMLRAY_STORE, else ./runs; in a Ray job, whose working folder is
    temporary, ~/pmlray-runs."""
    root = profile.storage or os.environ.get("PMLRAY_STORE")
    if root is None:
        in_ray_job = "working_dir_files" in Path.cwd().parts
        root = Path.home() / "pmlray-runs" if in_ray_job else Path("runs")
    return (Path(root) / search.spec.search_id).absolute()


def run_search(run: SearchRun, announce: Callable[[Progress], None]) -> dict[str, Any]:
    """Run or continue a search and return its machine-readable result.

    Errors of the spec, the model or the budget come before Ray is started; what is finished is in
    the store whatever happens after.
    """
    started = time.perf_counter()
    search = settled_in(run.store, run.search, run.profile)
    spec = search.spec
    table = None if run.replay is None else read_table(run.replay)
    if spec.design.acquisition == "gp" and find_spec("torch") is None:
        raise SpecError("design.acquisition gp is Optuna's GPSampler: it needs pip install torch")
    if table is None:
        search = ready_to_train(search)
    gpu = run.profile.gpus_per_pack > 0
    cost = first_cost(search, gpu)
    first_pack(search, cost)
    store = FileStore(run.store)
    with store.driver_lock() as driver, ExitStack() as following:
        _claim(run.store, spec)
        points = study_of(search, store, cost)
        tracker = spooled_tracker(store, run.tracking_uri, spec.search_id, spec)
        follower = following.enter_context(Follower(run.store, announce, tracker))
        known_packs = {times.pack_id for times in store.times()}
        law_search = LawSearch(
            search, store, points, tracker, cost, run.profile.max_pack_failures, follower
        )
        status = "FAILED"
        try:
            if (known := store.calibration()) is not None:
                law_search.calibrated(known)
            if table is not None:
                shared = spec.recipe.decay_share if spec.recipe.shares_trunks else None
                runner = TableRunner(table, store, spec.task.kind, shared)
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
            status = "KILLED"
            raise
        finally:
            follower.stage("writing the report")
            wall = time.perf_counter() - started
            new = [times for times in store.times() if times.pack_id not in known_packs]
            facts = {
                "store": str(run.store),
                "tracking_uri": run.tracking_uri,
                "wall_seconds": wall,
                # A table's seconds are those of another day.
                "training_share": None if table else sum(t.training_seconds for t in new) / wall,
                **machine_facts(),
            }
            await_imports()
            summary = report_store(run.store, facts)
            # Nothing is told of a study that is closed.
            following.close()
            tracker.finish(
                [run.store / "report" / "report.html", run.store / "report" / "report.json"], status
            )
    return summary


def study_of(
    search: PreparedSearch, store: FileStore, cost: CostModel, storage_url: str | None = None
) -> OptunaPoints:
    """The search's Optuna study, made anew from its store."""
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


def report_store(folder: Path, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the report of a store and return the result as JSON types.

    facts: of the run that just ended; without them, those of the last one are kept.
    """
    # Drawing libraries take a second to import, which a search's start should not wait for.
    from pmlray.study.findings.answer import plain_answer
    from pmlray.study.report.search_report import write_report

    result = read_result(folder)
    summary_file = folder / SUMMARY_FILE
    shown = kept_facts(summary_file) if facts is None else facts
    page = write_report(result, folder / "report", shown)
    shown = without_credentials(shown)
    answer = list(plain_answer(result))
    summary = {"answer": answer, **result.to_json(), **shown, "report": str(page)}
    write_over(summary_file, json.dumps({**summary, "facts": shown}, indent=2).encode())
    return summary


def open_store(folder: Path) -> tuple[SearchSpec, FileStore]:
    """A search and its store; StoreError when the folder is none, or damaged."""
    spec_file = folder / SPEC_FILE
    if not spec_file.is_file():
        raise StoreError(f"{folder} is no store of a search (it has no {SPEC_FILE})")
    return read_kept(SearchSpec, spec_file), FileStore(folder)


def read_result(folder: Path) -> SearchResult:
    """A search's result from its store; StoreError when the folder is none."""
    spec, store = open_store(folder)
    return assemble(
        spec, store.observations(), store.failures(), store.times(), store.calibration()
    )


def tracking_uri_for(store: Path, profile: ClusterProfile, option: str | None) -> str:
    """The option, MLFLOW_TRACKING_URI, the profile's, or a database in the store: first wins."""
    found = option or os.environ.get("MLFLOW_TRACKING_URI") or profile.tracking_uri
    return found or local_tracking_uri(store)


def spooled_tracker(
    store: FileStore, uri: str, name: str, spec: SearchSpec | CompareSpec
) -> SpooledTracker:
    """The tracker of a study, which never waits for MLflow."""
    return SpooledTracker(
        store, MirrorJournal(store.folder), uri, mirror_of(store, uri, name, spec)
    )


def mirror_of(
    store: FileStore, uri: str, name: str, spec: SearchSpec | CompareSpec
) -> Callable[[], Mirror]:
    """What reaches the study's run in MLflow, when it is called."""
    # An entry that is not taken is sent again: MLflow's own minutes of retries would only hide that
    # the server is back.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # stdout is for a command's result alone.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # That it is away is told once, not at every try.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    artifacts = store.folder / "mlflow-artifacts"
    settings = spec.model_dump(mode="json")

    def connect() -> Mirror:
        # Takes seconds, in a thread that nobody waits for.
        from pmlray.backends.mlflow.tracker import MlflowTracker

        return MlflowTracker(uri, name, settings, artifacts, store.adapters)

    return connect


def _require_train_extra() -> None:
    missing = [name for name in TRAIN_PACKAGES if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"running a search here needs the train extra ({', '.join(missing)} missing); run:"
            f" {INSTALL_TRAIN}, or send the search to a cluster with pmlray submit"
        )


def ready_to_train(search: PreparedSearch) -> PreparedSearch:
    """The search with its base model at hand; SpecError or ModelError without what training takes.

    The tiny random model is made on the spot; any other must be there or on the hub.
    """
    _require_train_extra()
    model = search.spec.model
    if model.id == TINY and search.source.folder is None:
        from pmlray.engine.model.pull import pull_model

        pull_model(TINY)
        return replace(search, source=resolve_model(model.id, model.revision))
    require_present(model.id, search.source)
    return search


def settled_in(folder: Path, search: PreparedSearch, profile: ClusterProfile) -> PreparedSearch:
    """The search in the dtype that its store was begun with, else in that of the device that the
    profile trains on; without GPUs this machine's CPU stands for all."""
    file = folder / SPEC_FILE
    kept = read_kept(SearchSpec, file) if file.is_file() else None
    of_it = kept is not None and kept.search_id == search.spec.search_id
    return search.settled(profile.gpus_per_pack > 0, kept.model if kept and of_it else None)


def _claim(folder: Path, spec: SearchSpec) -> None:
    """Keep the spec in its store; a store serves one search."""
    path = folder / SPEC_FILE
    if path.is_file():
        owner = read_kept(SearchSpec, path)
        if owner.search_id != spec.search_id:
            raise StoreError(
                f"{folder} holds the search {owner.search_id}, not {spec.search_id}; choose another"
                " --store"
            )
        check_same_dtype(folder, f"search {owner.search_id}", owner.model, spec.model)
        return
    write_over(path, spec.model_dump_json(indent=2).encode())
