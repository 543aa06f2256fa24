"""Trials of an Optuna study as a law uses them: design points, data and order of choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pmlray.design import Placements, Replicate
from pmlray.law import LawData
from pmlray.types import DesignPoint

log = logging.getLogger(__name__)

SIZES = ("lora_rank", "seq_len", "train_steps")
REPLICATE = ("sequence_id", "seed")
# Of trials whose adapters may sit at several placements.
PLACEMENT = "placement"
# A choice takes a fraction of a second; a trial without one by then is dead or has no design.
PATIENCE_SECONDS = 10.0
# An Optuna storage does not announce what another worker writes.
POLL_SECONDS = 0.02


def point_of(trial: FrozenTrial | Trial) -> DesignPoint:
    """Return the design point of a trial."""
    r, length, steps = (trial.params[name] for name in SIZES)
    return DesignPoint(r, length, steps, trial.params.get(PLACEMENT))


def replicate_of(trial: FrozenTrial) -> Replicate:
    """Return the (sequence_id, seed) of a trial."""
    return trial.params["sequence_id"], trial.params["seed"]


def design_params(placements: Placements) -> tuple[str, ...]:
    """Return the names of the parameters that make a design point and its replicate."""
    return (*SIZES, *REPLICATE, *((PLACEMENT,) if placements else ()))


def law_data_of(trials: Sequence[FrozenTrial], placements: Placements) -> LawData:
    """Return complete trials as the law's data; NaN where a trial lacks a loss."""
    replicates = sorted({replicate_of(t) for t in trials})

    def attribute(name: str) -> np.ndarray:
        return np.array([float(t.user_attrs.get(name, np.nan)) for t in trials])

    def param(name: str) -> np.ndarray:
        return np.array([t.params[name] for t in trials], dtype=float)

    tokens = attribute("supervised_tokens")
    data = LawData(
        lora_rank=param("lora_rank"),
        seq_len=np.where(np.isnan(tokens), param("seq_len"), tokens),
        train_steps=param("train_steps"),
        delta_loss=np.array([t.value for t in trials], dtype=float),
        base_loss=attribute("base_loss"),
        final_loss=attribute("final_loss"),
        cluster=np.array([replicates.index(replicate_of(t)) for t in trials], dtype=np.int64),
    )
    if not placements:
        return data
    of_trials = [placements[t.params[PLACEMENT]] for t in trials]
    return data.placed(of_trials, beside=tuple(placements.values()))


def await_earlier_choices(
    study: Study, number: int, given_up: set[int], params: Sequence[str]
) -> None:
    """Wait until every running trial with a lower number has its design point.

    Storages assign trial numbers one by one, so that workers that ask at the same time choose in
    that order, each with the earlier choices known. A trial without a choice, all of `params`,
    within PATIENCE_SECONDS is added to `given_up` and is not waited for again.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        waiting_for = {
            t.number
            for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if t.number < number and not is_chosen(t, params)
        } - given_up
        if not waiting_for:
            return
        if time.monotonic() > end:
            log.warning("trials %s have no design point; going on", sorted(waiting_for))
            given_up |= waiting_for
            return
        time.sleep(POLL_SECONDS)


def is_chosen(trial: FrozenTrial, params: Sequence[str]) -> bool:
    """Return whether the trial has its design point: all of `params`."""
    return all(name in trial.params for name in params)
