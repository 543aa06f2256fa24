"""Optuna study of a search, which chooses the law's points and shows them in dashboards.

The store is the record of truth. The study's journal is rewritten from it whenever a search starts,
so that a killed driver leaves no running trial behind and nothing is counted twice.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.trials import point_of
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import SearchSpec
from pmlray.config.secrets import without_credentials
from pmlray.errors import StoreError
from pmlray.types import DesignPoint, FailedRun, Observation, Pack, PlannedRun

JOURNAL = "optuna.journal"


class _QuickJournal(JournalFileBackend):
    """Journal that does not sync to disk, since it is rewritten after a crash, and is not read
    back, since no other process writes to it."""

    def __init__(self, path: Path) -> None:
        # The default lock is a symbolic link, which a killed driver would leave behind.
        super().__init__(str(path), JournalFileOpenLock(str(path)))
        self._n_read = 0
        self._kept: list[dict[str, Any]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, which other processes may read."""
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        with open(self._file_path, "ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        self._kept += map(json.loads, lines)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
        """Yield the lines from this number on; earlier ones are not requested again."""
        del self._kept[: log_number_from - self._n_read]
        self._n_read = log_number_from
        yield from tuple(self._kept)


class OptunaPoints:
    """PointSource that asks and tells the search's Optuna study, one design point per trial.

    storage_url: a database for the study in place of the journal in `folder`; an existing study of
    the same name is replaced.
    """

    def __init__(
        self,
        search: PreparedSearch,
        sampler: LawSampler,
        folder: Path,
        observations: Iterable[Observation],
        failures: Iterable[FailedRun],
        unfinished: Iterable[Pack] = (),
        storage_url: str | None = None,
    ) -> None:
        self._search, self._sampler = search, sampler
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            study_name=search.spec.search_id,
            storage=_empty_storage(folder, storage_url, search.spec.search_id),
            sampler=sampler,
            direction="maximize",
        )
        with warnings.catch_warnings():
            # Experimental in Optuna; it only names the objective in dashboards.
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_metric_names(["delta_loss"])
        spec = search.spec
        about = {"task": spec.task.kind, "model": spec.model.id, "placement": _placement(spec)}
        for name, value in about.items():
            self._study.set_user_attr(name, value)
        # A trial of an interrupted pack is known by its number only.
        self._trials: dict[str, optuna.Trial | int] = {}
        known = [o for o in observations if o.phase == "law"]
        measured = {o.run_key for o in known}
        # Runs that infrastructure failed are open again: they may be chosen once more.
        lost = [f for f in failures if f.run_key not in measured and not f.infrastructure]
        ended = measured | {f.run_key for f in lost}
        past = [(o.round, o.place, o.run_key, self._complete_trial(o)) for o in known]
        past += [(f.round, f.place, f.run_key, self._failed_trial(f)) for f in lost]
        past += [
            (pack.round, place, run.run_key, self._running_trial(run))
            for pack in unfinished
            for place, run in enumerate(pack.runs)
            if run.phase == "law" and run.run_key not in ended
        ]
        # Added in the order in which they were chosen, on which the next choice may depend.
        for _, _, run_key, trial in sorted(past, key=lambda run: run[:3]):
            if trial is None:
                continue
            if not trial.state.is_finished():
                self._trials[run_key] = len(self._study.get_trials(deepcopy=False))
            self._study.add_trial(trial)

    @property
    def n_trials(self) -> int:
        """Number of trials of the study."""
        return len(self._study.get_trials(deepcopy=False))

    def ask(
        self, k: int, devices: int = 1, gpu_seconds: float = math.inf, at_least: int = 0
    ) -> tuple[PlannedRun, ...]:
        """Return up to k runs for one of `devices` devices; fewer when the budget, the space or the
        device's share of the remaining budget is exhausted.

        gpu_seconds: limit of the pack's predicted cost, except for its first run and those up to
        `at_least`.
        """
        runs = []
        self._sampler.begin_pack(self._study, devices, gpu_seconds, at_least)
        for _ in range(k):
            if not self._sampler.within_budget(self._study):
                break
            trial = self._study.ask(fixed_distributions=self._sampler.distributions)
            params = trial.params
            point = point_of(trial)
            run = self._search.plan_run(point, "sft", params["sequence_id"], params["seed"], "law")
            trial.set_user_attr("run_key", run.run_key)
            self._trials[run.run_key] = trial
            why = self._sampler.why(trial.number)
            trial.set_user_attr("why", why)
            runs.append(replace(run, why=why))
        return tuple(runs)

    def tell(self, observation: Observation) -> None:
        """Complete the observation's trial, unless it was complete when the study was made."""
        trial = self._trials.pop(observation.run_key, None)
        if trial is None:
            return
        storage, trial_id = self._study._storage, self._trial_id(trial)
        for name, value in _attributes(observation).items():
            storage.set_trial_user_attr(trial_id, name, value)
        for step, value in _learnt(observation).items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        self._study.tell(trial, observation.delta_loss)

    def fail(self, run_key: str, gpu_seconds: float = 0.0) -> None:
        """Close a trial without a value; its cost counts as spent."""
        if (trial := self._trials.pop(run_key, None)) is not None:
            self._study._storage.set_trial_user_attr(
                self._trial_id(trial), "gpu_seconds", gpu_seconds
            )
            self._study.tell(trial, state=TrialState.FAIL)

    def calibrate(self, seconds_per_token: float, spent: float) -> None:
        """Set the rate measured on a few steps, used until runs are measured, and their cost,
        gpu_seconds."""
        self._sampler.calibrate(seconds_per_token, spent)

    def _trial_id(self, trial: optuna.Trial | int) -> int:
        # Optuna gives no other handle on a trial that was added while running.
        if isinstance(trial, int):
            return self._study.get_trials(deepcopy=False)[trial]._trial_id
        return trial._trial_id

    def _running_trial(self, run: PlannedRun) -> FrozenTrial:
        return create_trial(
            state=TrialState.RUNNING,
            params=_params(run.point, run.sequence_id, run.seed),
            distributions=self._sampler.distributions,
            user_attrs={"run_key": run.run_key},
        )

    def _complete_trial(self, o: Observation) -> FrozenTrial:
        return create_trial(
            value=o.delta_loss,
            params=_params(o.point, o.sequence_id, o.seed),
            distributions=self._sampler.distributions,
            user_attrs=_attributes(o),
            intermediate_values=_learnt(o),
        )

    def _failed_trial(self, failure: FailedRun) -> FrozenTrial | None:
        replicate = next(
            (
                pair
                for pair in self._search.spec.replicates()
                if self._search.plan_run(failure.point, "sft", *pair, "law").run_key
                == failure.run_key
            ),
            None,
        )
        if replicate is None:  # A MemFT run, which is no trial of this study.
            return None
        return create_trial(
            state=TrialState.FAIL,
            params=_params(failure.point, *replicate),
            distributions=self._sampler.distributions,
            user_attrs={"run_key": failure.run_key, "gpu_seconds": failure.gpu_seconds},
        )


def _empty_storage(folder: Path, url: str | None, name: str) -> BaseStorage:
    """Return a storage without a study of this name: a database, or by default the store's
    journal."""
    if url is not None:
        try:
            storage = get_storage(url)
        except (RuntimeError, SQLAlchemyError) as error:
            # In MLflow's database the table for the schema's version has the same name.
            raise StoreError(
                f"{without_credentials(url)} cannot hold an Optuna study ({error}); give it a"
                " database of its own, which MLflow does not use"
            ) from error
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)
        return storage
    journal = folder / JOURNAL
    journal.unlink(missing_ok=True)
    return JournalStorage(_QuickJournal(journal))


def _placement(spec: SearchSpec) -> str:
    """Return where the adapters of a search sit; a probe has the name that earlier studies have."""
    return spec.describe_places() if spec.probe is None else spec.probe.placement


def _params(point: DesignPoint, sequence_id: int, seed: int) -> dict[str, Any]:
    return {**point.to_json(), "sequence_id": sequence_id, "seed": seed}


def _learnt(o: Observation) -> dict[int, float]:
    """Return delta_loss by steps, nats per token, which dashboards draw as intermediate values."""
    return {step: o.base_loss - loss for step, loss in o.curve}


def _attributes(o: Observation) -> dict[str, float | str]:
    optional = {"control_delta_loss": o.control_delta_loss, "answer_recall": o.recall.answered}
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "run_key": o.run_key,
        "base_loss": o.base_loss,
        "final_loss": o.final_loss,
        "supervised_tokens": o.supervised_tokens,
        "gpu_seconds": o.gpu_seconds,
        "charged_steps": o.charged_steps,
        "token_recall": o.recall.token,
        "exact_recall": o.recall.exact,
    }
