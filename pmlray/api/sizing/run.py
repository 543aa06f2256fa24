"""Run of a sizing: from the plan for a set of records to the checked adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmlray.api.recall_check import decode_task
from pmlray.api.records.prompts import CHAT_PROMPTS
from pmlray.api.sizing import packs as sizing_packs
from pmlray.api.sizing.answer import SizedRank
from pmlray.api.sizing.law import law_at_hand
from pmlray.api.sizing.packs import Connect, Log, ShowProgress
from pmlray.api.sizing.places import PlaceOption
from pmlray.api.sizing.plan import SizePlan
from pmlray.api.sizing.sized_adapter import SizedAdapter
from pmlray.api.sizing.stage_clock import StageClock
from pmlray.atomic_files import write_all_over, write_over
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.backends.store.usable import require_own
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import ModelError, RunError
from pmlray.study.sizing.card import (
    CARD_JSON,
    NOT_RECALLED_FILE,
    SHARES,
    TEXT_FILE,
    describe_answer,
    describe_card,
    make_card,
)
from pmlray.study.sizing.choose_rank import next_rank
from pmlray.study.sizing.compared import search_at
from pmlray.study.sizing.cost import spent_seconds
from pmlray.study.sizing.decoded_records import DecodedRecords
from pmlray.study.sizing.request import METHOD
from pmlray.types import Observation

RESULT_FILE = "size.json"


def run_size(
    plan: SizePlan, address: str | None, tracking_uri: str | None, say: Log, shown: ShowProgress
) -> SizedAdapter:
    """Size, train and check; return the result, which is also in `plan.out`.

    Finished work stays in `plan.out` even if an error follows, and a repeated call continues from
    it. say: called with one line per stage; shown: shows the search. RunError when training fails.
    """
    kept = FileStore(plan.out / "training")
    # All stages share one Ray session, started by the first that trains something.
    with kept.driver_lock() as driver, ExitStack() as stages:

        def connect() -> None:
            stages.enter_context(ray_session(address))

        clock = StageClock()
        if plan.search.spec.task.prompt_format == "chat":
            say(CHAT_PROMPTS)
        law = law_at_hand(plan, address, connect, tracking_uri, say, shown)
        clock.lap("law")
        sized = plan.answer(law)
        choice = sized.choice
        say(f"[2/4] {describe_answer(sized.answer)}")
        # The runs of a stored law may be of other records, so none is reused.
        own = choice.shown if plan.stored is None else None
        trials: list[_Trial] = []
        rank: int | None = choice.point.lora_rank
        while rank is not None:
            # Reuse an adapter of the search that recalled enough, whatever its method.
            found = own if own is not None and own.point.lora_rank == rank else None
            trial = _try(
                *(plan, sized.option, rank, found, kept, driver, connect, shown),
                *(sized.answer["predicted_gpu_seconds"], say, clock),
            )
            trials.append(trial)
            if trial.recited.exact_recall >= plan.request.wanted.recall:
                break
            rank = next_rank(rank, choice, sized.option.limit)
            then = "the largest rank is reached" if rank is None else f"trying rank {rank}"
            wanted = plan.request.wanted.recall
            say(f"      {trial.recited.n_right} recalled, {wanted:.4g} wanted: {then}")
        best = max(trials, key=lambda trial: trial.recited.n_right)
        card = _card(plan, sized, trials, best, clock)
        result = SizedAdapter(card, best.recited, plan.out)
        _write(plan.out, best, card, _search_of(plan, sized.option, best))
        write_over(plan.out / RESULT_FILE, json.dumps(result.to_json(), indent=2).encode())
    return result


@dataclass(frozen=True)
class _Trial:
    """Adapter of all records with its decoded answers; `in_search`: trained by the search."""

    observation: Observation
    folder: Path
    recited: DecodedRecords
    in_search: bool

    def to_json(self) -> dict[str, Any]:
        """Return the trial as the card lists it."""
        o = self.observation
        return {
            "lora_rank": o.point.lora_rank,
            "run_key": o.run_key,
            **{name: self.recited.counts()[name] for name in SHARES},
            "final_loss": o.final_loss,
            "train_steps": o.curve[-1][0],
            "gpu_seconds": o.gpu_seconds,
            "in_search": self.in_search,
        }


def _search_of(plan: SizePlan, option: PlaceOption, trial: _Trial) -> PreparedSearch:
    """Return the search of a trial's training, at the place that was chosen alone."""
    return search_at(plan.search, option.name) if trial.in_search else option.training


def _try(
    plan: SizePlan,
    option: PlaceOption,
    rank: int,
    found: Observation | None,
    kept: FileStore,
    driver: Lease,
    connect: Connect,
    shown: ShowProgress,
    predicted: float,
    say: Log,
    clock: StageClock,
) -> _Trial:
    """Train an adapter of this rank, unless the search has, and check it."""
    if found is None:
        observation = _train(plan, option, rank, kept, driver, connect, shown, predicted, say)
        folder = kept.adapters / observation.run_key
    else:
        say(f"[3/4] rank {rank} was trained on all records in the search")
        observation, folder = found, plan.out / "law" / "adapters" / found.run_key
    clock.lap("training")
    recited = decode_task(option.training, folder, lambda line: say(f"[4/4] {line}"))
    clock.lap("check")
    return _Trial(observation, folder, recited, found is not None)


def _card(
    plan: SizePlan,
    sized: SizedRank,
    trials: Sequence[_Trial],
    best: _Trial,
    clock: StageClock,
) -> dict[str, Any]:
    provenance = best.observation.provenance
    trained = [t.observation.gpu_seconds for t in trials if not t.in_search]
    cost = {
        # The search of a stored law is no cost of this call.
        "search_gpu_seconds": 0.0 if plan.stored else spent_seconds(FileStore(plan.out / "law")),
        "training_gpu_seconds": sum(trained),
        "unit": provenance["gpu_seconds_unit"],
        "wall_seconds": clock.seconds,
        "versions": provenance["versions"],
        "device_name": provenance["device_name"],
    }
    return make_card(
        _search_of(plan, sized.option, best),
        plan.records,
        plan.request.wanted,
        sized.answer,
        sized.law,
        best.observation,
        [trial.to_json() for trial in trials],
        cost,
    )


def _train(
    plan: SizePlan,
    option: PlaceOption,
    rank: int,
    store: FileStore,
    driver: Lease,
    connect: Connect,
    shown: ShowProgress,
    predicted: float,
    say: Log,
) -> Observation:
    """Train the adapter of this rank on all records, unless an earlier call has."""
    point = replace(option.own_point, lora_rank=rank)
    run = option.training.plan_run(point, METHOD, 0, 0, "law")
    say(
        f"[3/4] training rank {rank} on all records with {METHOD}, about {predicted:.0f}"
        " gpu_seconds"
    )
    sizing_packs.measure(
        *(option.training, store, driver, (run,), plan.request.profile, predicted, connect, shown)
    )
    found = [o for o in store.observations() if o.run_key == run.run_key]
    if not found:
        failures = [f for f in store.failures() if f.run_key == run.run_key]
        if failures and failures[-1].bad_base:
            raise ModelError(failures[-1].reason)
        why = failures[-1].reason if failures else "it left no result"
        raise RunError(
            f"training rank {rank} failed: {why}; what"
            " is finished is kept: mend the cause and give the same command again"
        )
    return found[0]


def _write(out: Path, best: _Trial, card: dict[str, Any], search: PreparedSearch) -> None:
    """Write the adapter's folder with its card and the records that it does not recall.

    search: that of its training.
    """
    folder = out / "adapter"
    folder.mkdir(exist_ok=True)
    require_own(out, "adapter")
    require_own(best.folder)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in best.recited.missed())
    write_all_over(
        {folder / file.name: file.read_bytes() for file in best.folder.iterdir()}
        | {
            folder / CARD_JSON: json.dumps(card, indent=2).encode(),
            folder / TEXT_FILE: describe_card(card, search).encode(),
            folder / NOT_RECALLED_FILE: "".join(lines).encode(),
        }
    )
