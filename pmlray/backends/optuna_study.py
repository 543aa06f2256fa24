"""An Optuna study that mirrors a search: it chooses the law's points and shows them in dashboards.

The store is the record of truth. The study's journal is written anew from it whenever a search
starts, so that a killed driver leaves no running trial behind and nothing is counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from pmlray.backends.optuna_sampler import LawSampler
from pmlray.config.prepared import PreparedSearch
from pmlray.types import DesignPoint, FailedRun, Observation, PlannedRun

JOURNAL = "optuna.journal"


class _QuickJournal(JournalFileBackend):
    """A journal that does not wait for the disk: after a crash it is written anew anyway."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines, for whoever reads along; a search is the only one that writes."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open(self._file_path, "ab") as file:
            file.write(lines.encode())


class OptunaPoints:
    """A PointSource: the search's Optuna study, asked and told one design point a trial."""

    def __init__(
        self,
        search: PreparedSearch,
        sampler: LawSampler,
        folder: Path,
        observations: Iterable[Observation],
        failures: Iterable[FailedRun],
    ) -> None:
        self._search, self._sampler = search, sampler
        journal = folder / JOURNAL
        journal.unlink(missing_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # The default lock is a symbolic link, which a killed driver would leave behind.
        backend = _QuickJournal(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
        self._study = optuna.create_study(
            study_name=search.spec.search_id,
            storage=JournalStorage(backend),
            sampler=sampler,
            direction="maximize",
        )
        self._trials: dict[str, optuna.Trial] = {}
        known = [o for o in observations if o.phase == "law"]
        measured = {o.run_key for o in known}
        lost = [f for f in failures if f.run_key not in measured]
        # In the order in which they were asked for, on which the next choice may depend.
        for past in sorted([*known, *lost], key=lambda run: (run.round, run.place, run.run_key)):
            if isinstance(past, FailedRun):
                self._add_failed(past)
            else:
                self._study.add_trial(self._complete_trial(past))

    def ask(self, k: int) -> tuple[PlannedRun, ...]:
        """Up to k runs; fewer when the budget or the space is exhausted."""
        runs = []
        self._sampler.begin_pack(self._study)
        for _ in range(k):
            if not self._sampler.within_budget(self._study):
                break
            trial = self._study.ask(fixed_distributions=self._sampler.distributions)
            params = trial.params
            point = DesignPoint(params["lora_rank"], params["seq_len"], params["train_steps"])
            run = self._search.plan_run(point, "sft", params["sequence_id"], params["seed"], "law")
            trial.set_user_attr("run_key", run.run_key)
            self._trials[run.run_key] = trial
            runs.append(run)
        return tuple(runs)

    def tell(self, observation: Observation) -> None:
        """Complete the observation's trial."""
        trial = self._trials.pop(observation.run_key)
        for name, value in _attributes(observation).items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, observation.delta_loss)

    def fail(self, run_key: str) -> None:
        """Close a trial without a value."""
        if (trial := self._trials.pop(run_key, None)) is not None:
            self._study.tell(trial, state=TrialState.FAIL)

    def _complete_trial(self, o: Observation) -> FrozenTrial:
        return create_trial(
            value=o.delta_loss,
            params=_params(o.point, o.sequence_id, o.seed),
            distributions=self._sampler.distributions,
            user_attrs=_attributes(o),
        )

    def _add_failed(self, failure: FailedRun) -> None:
        replicate = next(
            (
                pair
                for pair in self._search.spec.replicates()
                if self._search.plan_run(failure.point, "sft", *pair, "law").run_key
                == failure.run_key
            ),
            None,
        )
        if replicate is None:  # A MemFT run: none of this study's trials.
            return
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL,
                params=_params(failure.point, *replicate),
                distributions=self._sampler.distributions,
                user_attrs={"run_key": failure.run_key, "gpu_seconds": failure.gpu_seconds},
            )
        )


def _params(point: DesignPoint, sequence_id: int, seed: int) -> dict[str, int]:
    return {
        "lora_rank": point.lora_rank,
        "seq_len": point.seq_len,
        "train_steps": point.train_steps,
        "sequence_id": sequence_id,
        "seed": seed,
    }


def _attributes(o: Observation) -> dict[str, float | str]:
    control = o.control_delta_loss
    return {
        **({} if control is None else {"control_delta_loss": control}),
        "run_key": o.run_key,
        "base_loss": o.base_loss,
        "final_loss": o.final_loss,
        "supervised_tokens": o.supervised_tokens,
        "gpu_seconds": o.gpu_seconds,
        "charged_steps": o.charged_steps,
        "token_recall": o.recall.token,
        "exact_recall": o.recall.exact,
    }
