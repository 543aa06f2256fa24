"""Law that a set of records is sized by: a stored one, or that of a search on the records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pmlray.api.search_run import SearchRun, run_search
from pmlray.api.sizing import packs as sizing_packs
from pmlray.api.sizing.budget import asked_budget, first_packs
from pmlray.api.sizing.packs import Connect, Log, ShowProgress
from pmlray.api.sizing.plan import SizePlan
from pmlray.api.sizing.stored_law import LawAtHand, fit_for
from pmlray.api.stores import open_store
from pmlray.api.tracking import tracking_uri_for
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import RunError
from pmlray.study.sizing.cost import spent_seconds


def law_at_hand(
    plan: SizePlan,
    address: str | None,
    connect: Connect,
    tracking_uri: str | None,
    say: Log,
    shown: ShowProgress,
) -> LawAtHand:
    """Return the stored law, or that of a search on the records, run or continued."""
    if plan.stored is not None:
        say(f"[1/4] law of {len(plan.stored.observations)} runs from {plan.stored.store}")
        return plan.stored
    folder, profile = plan.out / "law", plan.request.profile
    search = _begun(plan, folder, connect, say, shown)
    uri = tracking_uri_for(folder, profile, tracking_uri)
    with shown() as announce:
        # Whoever interrupts a sizing waits for its end alone: the call that continues it reports.
        run = SearchRun(search, profile, folder, uri, address, reports_interrupted=False)
        run_search(run, announce)
    spec, store = open_store(folder)
    observations = store.observations()
    summary = fit_for(spec, plan.options, observations)
    if summary is None:
        raise RunError(
            f"{len(observations)} runs carry no law; {folder / 'failures'} says what failed"
        )
    return LawAtHand(folder, summary, observations)


def _begun(
    plan: SizePlan, folder: Path, connect: Connect, say: Log, shown: ShowProgress
) -> PreparedSearch:
    """Return the search with its first runs measured, and a budget based on their cost."""
    search, store = plan.search, FileStore(folder)
    about = f"[1/4] searching the law of {len(plan.records.pairs)} records"
    if len(plan.options) > 1:
        about += f" at {len(plan.options)} placements"
    if (folder / SEARCH_FILE).is_file():
        say(f"{about}, about {search.spec.budget.law_seconds:.0f} gpu_seconds in all")
        return search
    say(f"{about}; its first runs tell what that takes")
    cost = plan.cost_by(())
    for first in first_packs(plan, cost):
        with store.driver_lock() as driver:
            sizing_packs.measure(
                *(search, store, driver, first, plan.request.profile, None, connect, shown)
            )
    observations = store.observations()
    if not observations:
        why = next((f.reason for f in reversed(store.failures())), "they left no result")
        raise RunError(f"the first runs of the law failed: {why}; {folder / 'failures'} has all")
    budget = asked_budget(plan, plan.cost_by(observations))
    say(
        f"      about {budget.law_seconds:.0f} gpu_seconds for the law,"
        f" {spent_seconds(store):.0f} of them spent"
    )
    return replace(search, spec=search.spec.model_copy(update={"budget": budget}))
