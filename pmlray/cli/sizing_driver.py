"""Wiring: from a plan for a set of records to the checked adapter that holds them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmlray.backends.file_leases import Lease
from pmlray.backends.file_store import FileStore
from pmlray.backends.ray_session import ray_session
from pmlray.cli.driver import SearchRun, open_store, run_search, tracking_uri_for
from pmlray.cli.follower import Follower
from pmlray.cli.recall_driver import check_recall
from pmlray.cli.size_plan import LawAtHand, SizePlan
from pmlray.cli.stage_clock import StageClock
from pmlray.config.prepared import PreparedSearch
from pmlray.errors import RunError, StoreError
from pmlray.study.plan import first_cost
from pmlray.study.progress import Progress
from pmlray.study.result import fit_observations
from pmlray.study.size import METHOD, first_points, sized_spec
from pmlray.study.size_card import (
    CARD_FILE,
    NOT_RECALLED_FILE,
    TEXT_FILE,
    Recitation,
    describe_answer,
    describe_card,
    make_card,
)
from pmlray.study.size_choice import next_rank
from pmlray.types import DesignPoint, Observation, Pack, PlannedRun

Say = Callable[[str], None]
Connect = Callable[[], None]
# A context that shows a search's progress, as `live_progress`.
Shown = Callable[[], AbstractContextManager[Callable[[Progress], None]]]
RESULT_FILE = "size.json"


def run_size(
    plan: SizePlan, address: str | None, tracking_uri: str | None, say: Say, shown: Shown
) -> dict[str, Any]:
    """Size, train and check; returns the machine-readable result.

    What is finished is in `plan.out` whatever happens after, and a repeated call continues there.
    say: one line a stage; shown: shows the search. RunError when training fails.
    """
    kept = FileStore(plan.out / "training")
    # One Ray for all stages that train something, from the first of them on.
    with kept.driver_lock() as driver, ExitStack() as stages:

        def connect() -> None:
            stages.enter_context(ray_session(address))

        clock = StageClock()
        law = _law(plan, address, connect, tracking_uri, say, shown)
        clock.lap("law")
        choice, sized = plan.answer(law)
        say(f"[2/4] {describe_answer(sized)}")
        # A stored law's runs may be of other records.
        own = choice.shown if plan.stored is None else None
        trials: list[_Trial] = []
        rank: int | None = choice.point.lora_rank
        while rank is not None:
            # It recalled enough, by whatever method: training it again would only cost.
            found = own if own is not None and own.point.lora_rank == rank else None
            trial = _try(
                *(plan, rank, found, kept, driver, connect, shown),
                *(sized["predicted_gpu_seconds"], say, clock),
            )
            trials.append(trial)
            if trial.recited.exact_recall >= plan.request.wanted.recall:
                break
            rank = next_rank(rank, choice, plan.largest.lora_rank)
            then = "the largest rank is reached" if rank is None else f"trying rank {rank}"
            wanted = plan.request.wanted.recall
            say(f"      {trial.recited.n_right} recalled, {wanted:.4g} wanted: {then}")
        best = max(trials, key=lambda trial: trial.recited.n_right)
        card = _card(plan, sized, law, trials, best, clock)
        result = {**card, "out": str(plan.out), "adapter_folder": str(plan.out / "adapter")}
        _write(plan, best, card)
        (plan.out / RESULT_FILE).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def _law(
    plan: SizePlan,
    address: str | None,
    connect: Connect,
    tracking_uri: str | None,
    say: Say,
    shown: Shown,
) -> LawAtHand:
    """The stored law, or that of a search on the records, run or continued."""
    if plan.stored is not None:
        say(f"[1/4] law of {len(plan.stored.observations)} runs from {plan.stored.store}")
        return plan.stored
    search, folder = plan.search, plan.out / "law"
    if folder.is_dir() and (folder / "search.json").is_file():
        owner = open_store(folder)[0].search_id
        if owner != search.spec.search_id:
            raise StoreError(
                f"{plan.out} holds the sizing of other records or with other options ({owner}, not"
                f" {search.spec.search_id}); choose another --out"
            )
    say(
        f"[1/4] searching the law of {len(plan.records.pairs)} records, about"
        f" {search.spec.budget.law_seconds:.0f} gpu_seconds"
    )
    profile = plan.request.profile
    begin = tuple(
        search.plan_run(point, "sft", search.spec.sequences[0], search.spec.seeds[0], "law")
        for point in first_points(search.spec)
    )
    store = FileStore(folder)
    with store.driver_lock() as driver:
        _measure(search, store, driver, begin, plan, connect, shown)
    run = SearchRun(
        search, profile, folder, tracking_uri_for(folder, profile, tracking_uri), address
    )
    with shown() as announce:
        run_search(run, announce)
    spec, store = open_store(folder)
    observations = store.observations()
    summary = fit_observations(sized_spec(spec, plan.largest), observations)
    if summary is None:
        raise RunError(
            f"{len(observations)} runs carry no law; {folder / 'failures'} says what failed"
        )
    return LawAtHand(folder, summary, observations)


@dataclass(frozen=True)
class _Trial:
    """One adapter of all records, and what it recites; `in_search`: the search had trained it."""

    observation: Observation
    folder: Path
    recited: Recitation
    in_search: bool

    def to_json(self) -> dict[str, Any]:
        """As the card lists it."""
        o = self.observation
        return {
            "lora_rank": o.point.lora_rank,
            "run_key": o.run_key,
            "n_recalled": self.recited.n_right,
            "exact_recall": self.recited.exact_recall,
            "final_loss": o.final_loss,
            "train_steps": o.curve[-1][0],
            "gpu_seconds": o.gpu_seconds,
            "in_search": self.in_search,
        }


def _try(
    plan: SizePlan,
    rank: int,
    found: Observation | None,
    kept: FileStore,
    driver: Lease,
    connect: Connect,
    shown: Shown,
    predicted: float,
    say: Say,
    clock: StageClock,
) -> _Trial:
    """Train a rank, unless the search has, and check it."""
    if found is None:
        observation = _train(plan, rank, kept, driver, connect, shown, predicted, say)
        folder = kept.adapters / observation.run_key
    else:
        say(f"[3/4] rank {rank} was trained on all records in the search")
        observation, folder = found, plan.out / "law" / "adapters" / found.run_key
    clock.lap("training")
    recited = check_recall(plan.training, folder, lambda line: say(f"[4/4] {line}"))
    clock.lap("check")
    return _Trial(observation, folder, recited, found is not None)


def _card(
    plan: SizePlan,
    sized: dict[str, Any],
    law: LawAtHand,
    trials: Sequence[_Trial],
    best: _Trial,
    clock: StageClock,
) -> dict[str, Any]:
    provenance = best.observation.provenance
    trained = [t.observation.gpu_seconds for t in trials if not t.in_search]
    cost = {
        # A stored law was paid for before.
        "search_gpu_seconds": 0.0 if plan.stored else _spent(plan.out / "law"),
        "training_gpu_seconds": sum(trained),
        "unit": provenance["gpu_seconds_unit"],
        "wall_seconds": clock.seconds,
        "versions": provenance["versions"],
        "device_name": provenance["device_name"],
    }
    return make_card(
        (plan.search if best.in_search else plan.training).spec,
        plan.training.source.identity,
        plan.records,
        plan.request.wanted,
        sized,
        law.summary,
        best.observation,
        [trial.to_json() for trial in trials],
        cost,
    )


def _train(
    plan: SizePlan,
    rank: int,
    store: FileStore,
    driver: Lease,
    connect: Connect,
    shown: Shown,
    predicted: float,
    say: Say,
) -> Observation:
    """The adapter of this rank, trained on all records unless it is there from an earlier call."""
    point = DesignPoint(rank, plan.largest.seq_len, plan.largest.train_steps)
    run = plan.training.plan_run(point, METHOD, 0, 0, "law")
    say(
        f"[3/4] training rank {rank} on all records with {METHOD}, about {predicted:.0f}"
        " gpu_seconds"
    )
    _measure(plan.training, store, driver, (run,), plan, connect, shown)
    found = [o for o in store.observations() if o.run_key == run.run_key]
    if not found:
        reasons = [f.reason for f in store.failures() if f.run_key == run.run_key]
        raise RunError(
            f"training rank {rank} failed: {reasons[-1] if reasons else 'it left no result'}; what"
            " is finished is kept: mend the cause and give the same command again"
        )
    return found[0]


def _measure(
    search: PreparedSearch,
    store: FileStore,
    driver: Lease,
    runs: Sequence[PlannedRun],
    plan: SizePlan,
    connect: Connect,
    shown: Shown,
) -> None:
    """Train those runs that the store has not got yet, as one pack."""
    done = {o.run_key for o in store.observations()}
    missing = tuple(run for run in runs if run.run_key not in done)
    if not missing:
        return
    from pmlray.backends.ray_packs import run_pack_on_ray

    rounds = [o.round for o in store.observations()] + [f.round for f in store.failures()]
    pack = Pack(1 + max(rounds, default=-1), missing)
    cost = first_cost(search, plan.request.profile.gpus_per_pack > 0)
    left = sum(cost.predict(run.point) for run in missing)
    with shown() as announce, Follower(store.folder, announce) as follower:
        follower.stage("starting Ray")
        begun = Progress("law", 0, len(missing), 0, 0.0, left, None, left, missing, len(missing))
        follower(replace(begun, what="training"))
        connect()
        follower.stage("waiting for a worker")
        store.put_times(run_pack_on_ray(search, pack, store, plan.request.profile, driver).times)


def _write(plan: SizePlan, best: _Trial, card: dict[str, Any]) -> None:
    """The adapter's folder with its card and the records that it does not recall."""
    folder = plan.out / "adapter"
    folder.mkdir(exist_ok=True)
    for file in best.folder.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2), encoding="utf-8")
    spec = (plan.search if best.in_search else plan.training).spec
    (folder / TEXT_FILE).write_text(describe_card(card, spec), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in best.recited.missed()]
    (folder / NOT_RECALLED_FILE).write_text("".join(lines), encoding="utf-8")


def _spent(folder: Path) -> float:
    """gpu_seconds of a store, failures included."""
    store = FileStore(folder)
    done = sum(o.gpu_seconds for o in store.observations())
    return done + sum(f.gpu_seconds for f in store.failures())
