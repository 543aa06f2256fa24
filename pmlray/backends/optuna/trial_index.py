"""Incremental index of a study's trials."""

from __future__ import annotations

import math
import threading
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pmlray.backends.optuna.trials import design_params, is_chosen, point_of, replicate_of
from pmlray.design import (
    ChosenRun,
    CostModel,
    DesignState,
    FittedForm,
    History,
    PendingSpend,
    Placements,
)
from pmlray.types import DesignPoint

# Laws fitted to a tenth more runs choose the same points, and fits after every pack would take too
# long in a search of hundreds of points.
FIT_ALL, FIT_GROWTH = 40, 1.1


def fitted_size(n: int) -> int:
    """Return to how many of n complete trials the laws are fitted: a function of n alone, so that a
    restarted search makes the same choices."""
    if n <= FIT_ALL:
        return n
    size = FIT_ALL
    while (larger := math.ceil(size * FIT_GROWTH)) <= n:
        size = larger
    return size


@dataclass(slots=True)
class _Entry:
    """Trial with a design point, as last read; `run.done`: the laws are fitted to it."""

    trial: FrozenTrial
    run: ChosenRun

    @property
    def is_complete(self) -> bool:
        trial = self.trial
        return (
            trial.state == TrialState.COMPLETE
            and trial.values is not None
            and math.isfinite(trial.values[0])
        )


class TrialIndex:
    """Index of the trials of one study, in the order of their numbers.

    cost: model before anything is measured; budget: gpu_seconds; believe: fits laws to complete
    trials; placements: those of the design. Threads that choose hold `lock` while they use the
    index.
    """

    def __init__(
        self,
        cost: CostModel,
        budget: float,
        believe: Callable[[Sequence[FrozenTrial]], tuple[FittedForm, ...]],
        placements: Placements | None = None,
    ) -> None:
        self._first_cost, self._budget, self._believe = cost, budget, believe
        self._placements: Placements = placements or {}
        self._params = design_params(self._placements)
        self.lock = threading.Lock()
        self._open(None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments only; a copy reads its study anew."""
        return TrialIndex, (self._first_cost, self._budget, self._believe, self._placements)

    def design_state(
        self, study: Study, pack_from: int | None, except_number: int | None = None
    ) -> DesignState:
        """Return the present state of the design; the same object until something changes.

        pack_from: number of the first trial of the pack that is being filled, if one is.
        except_number: number of a trial to leave out.
        """
        of = (study._storage, study._study_id)
        if of != self._study:
            self._open(of)
        trials = study.get_trials(deepcopy=False)
        last = next(reversed(self._entries), -1)
        entered = self._enter(trials, except_number)
        if entered and entered[0] < last:
            # A trial got its point later than trials of higher numbers: enter all in order again.
            self._open(of)
            entered = self._enter(trials, except_number)
        ended = self._close(trials)
        if ended or self._known is None:
            self._sum_up(ended)
        else:
            for number in entered:
                self._pending.add(self._entries[number].run)
        if ended or entered or self._known is None or pack_from != self._pack_from:
            self._pack_from = pack_from
            self._known = self._knowledge()
        return self._known

    def calibrate(self, seconds_per_token: float, spent: float) -> None:
        """Set the rate that is used before anything is measured; spent: gpu_seconds of the budget
        that its measurement took."""
        self._first_cost = replace(self._first_cost, seconds_per_token=seconds_per_token)
        self._budget -= spent
        self._open(None)

    def has_undecided(self, before: int) -> bool:
        """Return whether a trial of a lower number may still get its design point."""
        return any(number < before for number in self._undecided)

    def _open(self, study: tuple[BaseStorage, int] | None) -> None:
        self._study = study
        self._known: DesignState | None = None
        self._pack_from: int | None = None
        # Entries by number, ascending; numbers of those that have not ended; numbers of trials that
        # may still get a design point.
        self._entries: dict[int, _Entry] = {}
        self._running: list[int] = []
        self._undecided: list[int] = []
        self._n_seen = 0
        self._chosen: list[ChosenRun] = []
        self._history = History(placements=self._placements)
        self._n_complete = 0
        self._base_losses: list[float] = []
        # gpu_seconds of all ended trials; gpu_seconds and tokens of those that give the rate.
        self._spent = self._seconds = self._tokens = 0.0
        self._unmeasured: list[DesignPoint] = []
        self._beliefs: tuple[FittedForm, ...] = ()
        self._n_fitted = 0

    def _enter(self, trials: Sequence[FrozenTrial], except_number: int | None) -> list[int]:
        """Enter the trials that have got a design point; return their numbers, ascending."""
        open_, self._undecided = [*self._undecided, *range(self._n_seen, len(trials))], []
        self._n_seen = len(trials)
        entered: list[int] = []
        for number in open_:
            trial = trials[number]
            if number == except_number:
                self._undecided.append(number)
            elif is_chosen(trial, self._params):
                run = ChosenRun(point_of(trial), replicate_of(trial), done=False)
                self._entries[number] = _Entry(trial, run)
                self._running.append(number)
                self._chosen.append(run)
                self._history.add(run)
                entered.append(number)
            elif not trial.state.is_finished():
                self._undecided.append(number)
        return entered

    def _close(self, trials: Sequence[FrozenTrial]) -> list[_Entry]:
        """Return the entries that have ended since the last call."""
        ended: list[_Entry] = []
        still: list[int] = []
        for number in self._running:
            if trials[number].state.is_finished():
                entry = self._entries[number]
                entry.trial = trials[number]
                ended.append(entry)
            else:
                still.append(number)
        self._running = still
        return ended

    def _sum_up(self, ended: Sequence[_Entry]) -> None:
        """Update laws, cost and spend with the ended trials, which alone change them."""
        for entry in ended:
            found = entry.trial.user_attrs
            seconds, loss = found.get("gpu_seconds"), found.get("base_loss")
            self._spent += seconds or 0.0
            if not entry.is_complete:
                continue
            self._n_complete += 1
            if loss is not None:
                insort(self._base_losses, loss)
            if seconds is None:
                self._unmeasured.append(entry.run.point)
                continue
            point = entry.run.point
            steps = found.get("charged_steps", point.train_steps)
            self._seconds += seconds
            self._tokens += steps * self._first_cost.work_per_step(point)
        self._believe_anew()
        self._cost = self._first_cost.at_rate(self._seconds, self._tokens)
        self._pending = PendingSpend(self._cost, [self._entries[n].run for n in self._running])

    def _believe_anew(self) -> None:
        """Fit the laws again, if a new fit is due."""
        size = fitted_size(self._n_complete)
        if size == self._n_fitted:
            return
        self._n_fitted = size
        complete = [entry for entry in self._entries.values() if entry.is_complete][:size]
        self._beliefs = self._believe([entry.trial for entry in complete])
        for entry in complete:
            entry.run = replace(entry.run, done=True)
        self._chosen = [entry.run for entry in self._entries.values()]

    def _knowledge(self) -> DesignState:
        # Trials without a measured cost count with their predicted cost.
        spent = self._spent + sum(map(self._cost.predict, self._unmeasured))
        return DesignState(
            chosen=tuple(self._chosen),
            beliefs=self._beliefs,
            base_loss=median(self._base_losses or [math.inf]),
            cost=self._cost,
            budget_left=self._budget - spent - self._pending.gpu_seconds,
            pack=tuple(
                self._entries[number].run
                for number in self._running
                if self._pack_from is not None and number >= self._pack_from
            ),
            training=self._pending.gpu_seconds,
            kept=self._history,
            placements=self._placements,
        )
