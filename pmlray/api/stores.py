"""Stores of results: default location, ownership and opening."""

from __future__ import annotations

import os
from pathlib import Path

from pmlray.atomic_files import write_over
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.bases.dtype import check_same_dtype
from pmlray.config.bases.model_spec import Model
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import KeptModel, PreparedSearch
from pmlray.config.recipe import FORMER_RATE
from pmlray.config.search_spec import Task
from pmlray.config.store_folder import local_folder
from pmlray.config.stored_files import COMPARISON_FILE, SEARCH_FILE, read_stored
from pmlray.errors import StoreError
from pmlray.study.findings.result import SearchResult, assemble

# Fields that all specs of one comparison store share; the others only select its runs.
SAME = ("task", "model", "probe", "adapter", "recipe", "memft", "evaluate")


def default_store(search_id: str, profile: ClusterProfile) -> Path:
    """Return a search's folder in `profile.storage`, else in PMLRAY_STORE, else in ./runs.

    In a Ray job, whose working folder is temporary, ~/pmlray-runs takes the place of ./runs.
    SpecError where PMLRAY_STORE is a URL.
    """
    in_ray_job = "working_dir_files" in Path.cwd().parts
    root = Path.home() / "pmlray-runs" if in_ray_job else Path("runs")
    if profile.storage:
        root = Path(profile.storage)
    elif of_environment := os.environ.get("PMLRAY_STORE"):
        root = local_folder(of_environment, "PMLRAY_STORE")
    return (root / search_id).absolute()


def store_folder(given: str | Path | None, search_id: str, profile: ClusterProfile) -> Path:
    """Return the folder that `--store` names, else the default one; SpecError where it is a URL."""
    if given is None:
        return default_store(search_id, profile)
    return local_folder(given, "--store").absolute()


def kept_model(given: str | Path | None, profile: ClusterProfile) -> KeptModel:
    """Return a function that tells the model that a search's store was begun with.

    given: the folder that `--store` names; None: the default one.
    """

    def of_store(search_id: str) -> Model | None:
        folder = store_folder(given, search_id, profile)
        if (file := folder / SEARCH_FILE).is_file():
            return read_stored(SearchSpec, file).model
        if (file := folder / COMPARISON_FILE).is_file():
            return read_stored(CompareSpec, file).model
        return None

    return of_store


def open_store(folder: Path) -> tuple[SearchSpec, FileStore]:
    """Return a search and its store; StoreError when the folder is no store, or damaged, SpecError
    when it is a URL."""
    return read_spec(folder), FileStore(folder)


def read_spec(folder: Path) -> SearchSpec:
    """Return the search whose store a folder is; errors as of `open_store`."""
    spec_file = local_folder(folder, "the store") / SEARCH_FILE
    if not spec_file.is_file():
        raise StoreError(
            f"{folder} is no store of a search (it has no {SEARCH_FILE}){_held(folder)}"
        )
    return read_stored(SearchSpec, spec_file)


def _held(folder: Path) -> str:
    """Return what a folder without a search holds instead, for a message."""
    if (folder / COMPARISON_FILE).is_file():
        return "; it holds a comparison"
    if (folder / "law" / SEARCH_FILE).is_file():
        return f"; it holds a sizing, the search of whose law is {folder / 'law'}"
    return ""


def read_result(folder: Path) -> SearchResult:
    """Return a search's result from its store; StoreError when the folder is no store."""
    spec, store = open_store(folder)
    return assemble(
        spec, store.observations(), store.failures(), store.times(), store.calibration()
    )


def settled_in(folder: Path, search: PreparedSearch, profile: ClusterProfile) -> PreparedSearch:
    """Return the search in the dtype that its store was begun with, else in the device's.

    The device is the one that the profile trains on; without GPUs all workers are taken to have
    this machine's CPU.
    """
    file = folder / SEARCH_FILE
    kept = read_stored(SearchSpec, file) if file.is_file() else None
    of_it = kept is not None and kept.search_id == search.spec.search_id
    return search.settled(profile.gpus_per_pack > 0, kept.model if kept and of_it else None)


def claim_search(folder: Path, spec: SearchSpec) -> None:
    """Keep the spec in its store; StoreError when the store holds another search."""
    path = folder / SEARCH_FILE
    if path.is_file():
        owner = read_stored(SearchSpec, path)
        if owner.search_id != spec.search_id:
            raise StoreError(
                f"{folder} holds the search {owner.search_id}, not {spec.search_id};"
                f" {_without_ends(owner.task, spec.task)}{_at_former_rate(owner, spec)}"
                "choose another --store"
            )
        if owner.model.revision != spec.model.revision:
            raise StoreError(
                f"{folder} was begun with {owner.model.id} at {owner.model.revision}, and this is"
                f" {spec.model.revision}: give model.revision, or choose another --store"
            )
        check_same_dtype(folder, f"search {owner.search_id}", owner.model, spec.model)
        return
    write_over(path, spec.model_dump_json(indent=2).encode())


def _without_ends(kept: Task, asked: Task) -> str:
    """Return what continues a store of before ends were trained, for a message about another."""
    if kept.model_copy(update={"end": asked.end}) == asked and not kept.end and asked.end:
        return "it was begun without the ends of answers: set task.end: false to continue it, or "
    return ""


def _at_former_rate(kept: SearchSpec, asked: SearchSpec) -> str:
    """Return what continues a store of before the rate followed the adapter's place, for a message
    about another search."""
    same = kept.model_copy(update={"recipe": asked.recipe})
    rates = (kept.recipe.learning_rate, asked.recipe.learning_rate)
    if rates == (FORMER_RATE, "auto") and same.search_id == asked.search_id:
        return (
            f"it was begun when the rate was {FORMER_RATE:g} everywhere: set recipe.learning_rate:"
            f" {FORMER_RATE:g} to continue it, or "
        )
    return ""


def claim_comparison(folder: Path, spec: CompareSpec) -> None:
    """Keep the spec in its store; StoreError when the store holds another comparison.

    One store may hold more points, texts, rates and methods of the same comparison.
    """
    path = folder / COMPARISON_FILE
    if path.is_file():
        owner = read_stored(CompareSpec, path)
        differing = [name for name in SAME if getattr(owner, name) != getattr(spec, name)]
        was, now = ((m.id, m.revision) for m in (owner.model, spec.model))
        if "model" in differing and was == now:
            differing.remove("model")
        if differing:
            raise StoreError(
                f"{folder} holds the comparison {owner.compare_id}, whose {', '.join(differing)}"
                f" differ; {_without_ends(owner.task, spec.task)}choose another --store"
            )
        check_same_dtype(folder, f"comparison {owner.compare_id}", owner.model, spec.model)
    write_over(path, spec.model_dump_json(indent=2).encode())
