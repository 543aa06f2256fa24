"""Design points for a memory law as an Optuna sampler: one Optuna trial is one design point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pmlray.design import (
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    Knowledge,
    choose_run,
)
from pmlray.design.space import Replicate
from pmlray.errors import FitError
from pmlray.law import Form, LawData, LawFit, fit_law
from pmlray.types import DesignPoint

PARAMS = ("lora_rank", "seq_len", "train_steps", "sequence_id", "seed")


class LawSampler(BaseSampler):
    """Chooses the trial that tells most about the law at the targets per predicted gpu_second.

    A trial's value is its delta_loss; its user attributes `base_loss`, `final_loss`,
    `supervised_tokens` and `gpu_seconds` feed the law and the cost model. Running trials count as
    measured, failed ones as measured without a result. `within_budget` tells whether any open run
    is still affordable; `budget` is in gpu_seconds. The laws are refitted when a trial has been
    completed, not for every choice.
    """

    def __init__(
        self,
        space: DesignSpace,
        settings: DesignSettings,
        forms: Sequence[Form],
        cost: CostModel,
        budget: float,
        seed: int = 0,
    ) -> None:
        self._space, self._settings = space, settings
        self._forms, self._cost, self._budget = tuple(forms), cost, budget
        self._independent = RandomSampler(seed=seed)
        self._fits: tuple[LawFit, ...] = ()
        self._fitted_trials: tuple[int, ...] = ()

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The search space: every value of every design parameter."""
        cells, replicates = self._space.cells, self._space.replicates
        values = {
            "lora_rank": {c.lora_rank for c in cells},
            "seq_len": {c.seq_len for c in cells},
            "train_steps": {c.train_steps for c in cells},
            "sequence_id": {sequence for sequence, _ in replicates},
            "seed": {seed for _, seed in replicates},
        }
        return {name: CategoricalDistribution(sorted(found)) for name, found in values.items()}

    def within_budget(self, study: Study) -> bool:
        """Whether another run is both open and affordable."""
        return self._choose(study) is not None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All design parameters are chosen jointly."""
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next design point and replicate; empty (independent sampling) when none is left."""
        choice = self._choose(study, except_number=trial.number)
        if choice is None:
            return {}
        point, (sequence_id, seed) = choice
        return {
            "lora_rank": point.lora_rank,
            "seq_len": point.seq_len,
            "train_steps": point.train_steps,
            "sequence_id": sequence_id,
            "seed": seed,
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A parameter that is none of the design's: uniformly at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Parallel workers draw other independent values."""
        self._independent.reseed_rng()

    def _choose(
        self, study: Study, except_number: int | None = None
    ) -> tuple[DesignPoint, Replicate] | None:
        trials = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.number != except_number and all(name in t.params for name in PARAMS)
        ]
        return choose_run(self._space, self._settings, self._knowledge(trials))

    def _knowledge(self, trials: Sequence[FrozenTrial]) -> Knowledge:
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        self._refit(complete)
        cost = self._cost.learn((_point(t), t.user_attrs["gpu_seconds"]) for t in complete)
        pending = [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        spent = sum(t.user_attrs.get("gpu_seconds", 0.0) for t in trials)
        return Knowledge(
            chosen=tuple(
                ChosenRun(_point(t), (t.params["sequence_id"], t.params["seed"]), t in complete)
                for t in trials
            ),
            fits=self._fits,
            base_loss=median([t.user_attrs["base_loss"] for t in complete] or [0.0]),
            cost=cost,
            budget_left=self._budget - spent - sum(cost.predict(_point(t)) for t in pending),
        )

    def _refit(self, complete: Sequence[FrozenTrial]) -> None:
        numbers = tuple(t.number for t in complete)
        if numbers == self._fitted_trials:
            return
        fits = []
        for form in self._forms:
            try:
                fits.append(fit_law(_law_data(complete), form))
            except FitError:
                continue  # Too few points for this form; the others still guide the design.
        self._fits, self._fitted_trials = tuple(fits), numbers


def _point(trial: FrozenTrial) -> DesignPoint:
    return DesignPoint(*(trial.params[name] for name in PARAMS[:3]))


def _law_data(trials: Sequence[FrozenTrial]) -> LawData:
    replicates = sorted({(t.params["sequence_id"], t.params["seed"]) for t in trials})

    def column(name: str) -> np.ndarray:
        return np.array([t.user_attrs[name] for t in trials], dtype=float)

    return LawData(
        lora_rank=np.array([t.params["lora_rank"] for t in trials], dtype=float),
        seq_len=column("supervised_tokens"),
        train_steps=np.array([t.params["train_steps"] for t in trials], dtype=float),
        delta_loss=np.array([t.value for t in trials], dtype=float),
        base_loss=column("base_loss"),
        final_loss=column("final_loss"),
        cluster=np.array(
            [replicates.index((t.params["sequence_id"], t.params["seed"])) for t in trials]
        ),
    )
