"""Optuna sampler of design points for a memory law: one trial is one design point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pmlray.backends.optuna.own_params import check_holds, check_none_fixed, check_suggested
from pmlray.backends.optuna.trial_index import TrialIndex
from pmlray.backends.optuna.trials import (
    PLACEMENT,
    SIZES,
    await_earlier_choices,
    design_params,
    law_data_of,
)
from pmlray.design import (
    LAW_RULES,
    CostModel,
    DesignSettings,
    DesignSpace,
    DesignState,
    DeviceShare,
    FittedForm,
    Replicate,
    choose_run,
    device_share,
    nearest_cell,
    open_candidates,
    why_chosen,
)
from pmlray.design.space import Candidate
from pmlray.errors import FitError
from pmlray.law import FitOptions, Form, average_laws
from pmlray.types import DesignPoint


class LawSampler(BaseSampler):
    """Optuna sampler of the trial that is most informative of the law per predicted gpu_second.

    It works in plain `study.optimize`. The objective suggests `lora_rank`, `seq_len`,
    `train_steps`, `sequence_id` and `seed` from `distributions` (`suggest_int` with the same
    bounds, the first three with log=True) and, where the space has placements, `placement`
    (`suggest_categorical` of its choices), sets the user attribute `base_loss` (nats) and, where
    they are known, `final_loss` (nats), `supervised_tokens` and `gpu_seconds`, and returns
    delta_loss (nats per token). Other parameters are drawn at random. Running trials count as
    measured, failed ones as measured without a result. The laws are refitted when trials have been
    completed, not for every choice; beyond 40 trials, once a tenth more are complete.

    Workers may share a study on any of Optuna's storages, and no two of them choose the same run:
    each waits until all earlier trials have their design parameters in the storage. The objective
    must therefore suggest these first, before its work. A trial without them is waited for 10
    seconds; if it chooses later, its run may repeat another's. A worker that is killed afterwards
    leaves a running trial, which counts as measured and as spent until it is failed (`study.tell`,
    or the heartbeat of Optuna's RDBStorage).

    Args:
        space: cells of the grid, and the (sequence_id, seed) pairs of a cell.
        settings: number of first runs, targets at which the law must be known, and the rule
            (`acquisition`); `tpe` and `gp` ask Optuna's own sampler for a large delta_loss and take
            the nearest open cell.
        forms: forms of the law that are fitted and averaged.
        cost: cost of a run before any is measured.
        budget: gpu_seconds; beyond it no trial gets a design point.
        options: treatment of points in a fit; by default that of `FitOptions()`.

    Raises:
        ValueError: on sampling, where the study has more than one objective.
        DesignError: after a trial that did not suggest all of these parameters, or one of them with
            a distribution that lacks some of its values; and where another sampler fixes some.
        DataError: on sampling, where a complete trial's `base_loss` is not a finite number above 0,
            or its `supervised_tokens` are below 1.

    Example:
        >>> import optuna
        >>> cells = [DesignPoint(r, l, 100) for r in (1, 2, 4, 8) for l in (32, 64, 128, 256)]
        >>> space = DesignSpace(cells, replicates=[(0, 0), (1, 0)])
        >>> settings = DesignSettings(4, 0.2, targets=[DesignPoint(8, 256, 100)])
        >>> cost = CostModel(1e-3, prompt_tokens=0, batch_records=None)
        >>> sampler = LawSampler(space, settings, ["ceiling"], cost, budget=300.0)
        >>> def objective(trial):
        ...     rank, length, steps, text, seed = (
        ...         trial.suggest_int(name, d.low, d.high, log=d.log)
        ...         for name, d in sampler.distributions.items()
        ...     )
        ...     trial.set_user_attr("base_loss", 10.0)      # then your experiment measures
        ...     trial.set_user_attr("gpu_seconds", 1e-3 * length * steps)
        ...     return 8.0 * rank**0.4 * length**-0.3       # delta_loss
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(objective, n_trials=8)
        >>> len({tuple(trial.params.values()) for trial in study.trials})
        8

        scripts/examples/optuna_sampler.py is a whole program, which also stops at the budget.
    """

    def __init__(
        self,
        space: DesignSpace,
        settings: DesignSettings,
        forms: Sequence[Form],
        cost: CostModel,
        budget: float,
        options: FitOptions | None = None,
    ) -> None:
        self._space, self._settings = space, settings
        self._forms, self._options = tuple(forms), options
        self._params = design_params(space.placements)
        self._index = TrialIndex(cost, budget, self._believe, space.placements)
        self._independent = RandomSampler(seed=settings.seed)
        self._pack_from: int | None = None
        self._share = DeviceShare()
        self._given_up: set[int] = set()
        self._why: dict[int, str] = {}  # Holds the last choice only.
        rivals = {"tpe": TPESampler, "gp": GPSampler}
        rival = rivals.get(settings.acquisition)
        self._rival = None if rival is None else rival(seed=settings.seed)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Search space: the smallest box around the grid; the sampler stays on the grid."""
        cells, replicates = self._space.cells, self._space.replicates
        values = {name: [getattr(c, name) for c in cells] for name in SIZES}
        values["sequence_id"] = [sequence for sequence, _ in replicates]
        values["seed"] = [seed for _, seed in replicates]
        found: dict[str, BaseDistribution] = {
            name: IntDistribution(min(taken), max(taken), log=name in SIZES)
            for name, taken in values.items()
        }
        if self._space.placements:
            found[PLACEMENT] = CategoricalDistribution(tuple(self._space.placements))
        return found

    def begin_pack(
        self, study: Study, devices: int = 1, gpu_seconds: float = math.inf, at_least: int = 0
    ) -> None:
        """Begin a pack: trials that are asked for until the next call train together on one device.

        Args:
            study: the study that the trials belong to.
            devices: number of devices; a pack is limited to its share of the remaining budget.
            gpu_seconds: limit of the pack's predicted cost, except for its first run and those up
                to `at_least`.
            at_least: number of first runs that `gpu_seconds` does not limit.
        """
        self._pack_from = len(study.get_trials(deepcopy=False))
        with self._index.lock:
            share = device_share(self._index.design_state(study, self._pack_from), devices)
            self._share = replace(share, planned=gpu_seconds, at_least=at_least)

    def calibrate(self, seconds_per_token: float, spent: float) -> None:
        """Set the rate that is used until trials are measured.

        Args:
            seconds_per_token: gpu_seconds of one token in one optimiser step.
            spent: gpu_seconds of the budget that the measurement of this rate took.
        """
        with self._index.lock:
            self._index.calibrate(seconds_per_token, spent)

    def why(self, number: int) -> str:
        """Return the reason for the point of the trial that was chosen last; "" for any other."""
        return self._why.get(number, "")

    def within_budget(self, study: Study) -> bool:
        """Return whether another run is both open and affordable, and has room in the pack if
        one is being filled."""
        with self._index.lock:
            known = self._index.design_state(study, self._pack_from)
            room = self._share.room(known) if known.pack else math.inf
            return any(candidate.gpu_seconds <= room for candidate in self._open(known))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all design parameters, which are chosen jointly."""
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose the next design point and replicate; draw other parameters at random.

        When nothing is open or affordable any more, the design parameters are left out, and a
        trial that suggests them gets random values.
        """
        self._raise_error_if_multi_objective(study)
        design = {n: d for n, d in search_space.items() if n in self._params}
        check_none_fixed(design, self._params)
        values = {
            name: self._independent.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in design
        }
        if not design:
            return values
        choice = self._choose_in_turn(study, trial)
        if choice is not None:
            point, (sequence_id, seed) = choice
            values |= point.to_json() | {"sequence_id": sequence_id, "seed": seed}
        return values

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that is not of the design uniformly at random.

        DesignError where one of the design's is suggested with another distribution, which lacks
        the value that was chosen.
        """
        self._raise_error_if_multi_objective(study)
        check_holds(param_name, param_distribution, self.distributions)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Raise DesignError where a trial that ran does not have the design's parameters: it is no
        run of the design, and the same point would be chosen for ever."""
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            check_suggested(trial, self.distributions)

    def reseed_rng(self) -> None:
        """Reseed the random parameters, so that parallel workers draw different values."""
        self._independent.reseed_rng()

    def _choose_in_turn(
        self, study: Study, trial: FrozenTrial
    ) -> tuple[DesignPoint, Replicate] | None:
        with self._index.lock:
            known = self._index.design_state(study, self._pack_from, trial.number)
            if not self._index.has_undecided(trial.number):
                return self._choose(study, trial, known)
        await_earlier_choices(study, trial.number, self._given_up, self._params)
        with self._index.lock:
            known = self._index.design_state(study, self._pack_from, trial.number)
            return self._choose(study, trial, known)

    def _choose(
        self, study: Study, trial: FrozenTrial, known: DesignState
    ) -> tuple[DesignPoint, Replicate] | None:
        if self._rival is None:
            choice = choose_run(self._space, self._settings, known, self._share.room(known))
            if choice is not None:
                self._why = {trial.number: why_chosen(self._space, self._settings, known, *choice)}
            return choice
        candidates = {candidate.point: candidate for candidate in self._open(known)}
        if not candidates:
            return None
        of_point = {n: d for n, d in self.distributions.items() if n in (*SIZES, PLACEMENT)}
        space = {n: d for n, d in of_point.items() if not d.single()}
        found = self._rival.sample_relative(study, trial, space) if space else {}
        for name, distribution in of_point.items():
            if name not in found:
                found[name] = self._independent.sample_independent(study, trial, name, distribution)
        self._why = {trial.number: f"Optuna's {self._settings.acquisition}"}
        wanted = DesignPoint(**found)
        cell = nearest_cell(list(candidates), wanted, self._space.cells, self._space.placements)
        return cell, candidates[cell].replicate

    def _open(self, known: DesignState) -> Iterator[Candidate]:
        return open_candidates(self._space, known, self._settings.n_initial)

    def _believe(self, complete: Sequence[FrozenTrial]) -> tuple[FittedForm, ...]:
        """Return the laws fitted to complete trials; none where the rule needs none, or there are
        too few trials for a fit."""
        if self._settings.acquisition not in LAW_RULES:
            return ()
        try:
            average = average_laws(
                law_data_of(complete, self._space.placements), self._forms, self._options
            )
        except FitError:
            return ()
        return tuple(
            FittedForm(fit, weight)
            for fit, weight in zip(average.fits, average.weights, strict=True)
        )
