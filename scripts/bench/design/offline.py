"""Policies replayed offline: the planner's own code path, with a measurement looked up or made up.

A replay asks LawSampler for packs through an Optuna study, exactly as a search does, and answers
with what a synthetic truth or a table of real runs holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.config.law_options import LawOptions
from pmlray.design import CostModel, DesignSettings, DesignSpace, Replicate
from pmlray.errors import FitError
from pmlray.law import LawData, average_laws
from pmlray.types import DesignPoint

PACK_SIZE = 8
VALIDATION_SHARE = 0.2
POLICIES = (
    "v_optimal", "v_optimal_single", "d_optimal", "sobol", "lhs", "random", "cheapest_first", "tpe",
    "gp",
)  # fmt: skip

# Optuna's Gaussian process takes a minute a replay: it is replayed from few seeds.
FEW_SEEDS = {"gp": 4}

FloatArray = NDArray[np.float64]
Run = tuple[DesignPoint, Replicate]


@dataclass(frozen=True)
class Measured:
    """What one run yields: losses in nats per token, and the l that was measured."""

    delta_loss: float
    base_loss: float
    supervised_tokens: float


@dataclass(frozen=True)
class Charge:
    """What one run of a pack costs there: gpu_seconds, and the optimiser steps that they pay."""

    gpu_seconds: float
    steps: float


@dataclass(frozen=True)
class World:
    """A grid that may be measured, and held-out points that no policy ever sees.

    `charge`: what each run of one pack costs. `targets`: T points where predictions count, of
    `target_tokens` (T,) supervised tokens; `heldout` (T, S): runs of S sequences there, nats;
    `truth` (T,): what they are without noise, where known. `cost` prices runs before any is
    measured.
    """

    space: DesignSpace
    measure: Callable[[DesignPoint, Replicate], Measured]
    charge: Callable[[Sequence[Run]], list[Charge]]
    targets: tuple[DesignPoint, ...]
    target_tokens: FloatArray
    heldout: FloatArray
    cost: CostModel
    truth: FloatArray | None = None

    @property
    def runs(self) -> list[Run]:
        """Every run of the grid."""
        return [(cell, pair) for cell in self.space.cells for pair in self.space.replicates]

    @property
    def grid_cost(self) -> float:
        """gpu_seconds of every run of the grid, in one pack: what a full grid need not pay twice
        it does not."""
        return sum(charge.gpu_seconds for charge in self.charge(self.runs))


@dataclass(frozen=True)
class Errors:
    """Root mean square errors at the targets, nats: of held-out runs, whose own noise no prediction
    can avoid, and of the truth behind them (NaN where it is not known)."""

    heldout: float
    truth: float


@dataclass(frozen=True)
class Step:
    """After a pack: gpu_seconds spent, errors of what is then predicted, and all runs so far."""

    gpu_seconds: float
    errors: Errors
    runs: tuple[Run, ...]


def seeds_of(policy: str, n_seeds: int) -> range:
    """The seeds from which a policy is replayed."""
    return range(min(n_seeds, FEW_SEEDS.get(policy, n_seeds)))


def full_grid_errors(world: World, law: LawOptions) -> Errors:
    """The errors of what pmlray predicts from every run of the grid."""
    return _errors(world, law, world.runs)


def replay(world: World, policy: str, seed: int, share: float, law: LawOptions) -> list[Step]:
    """The error at the targets after every pack, until `share` of the grid's cost is spent."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budget = share * world.grid_cost
    settings = DesignSettings(PACK_SIZE, VALIDATION_SHARE, world.targets, policy, seed)  # type: ignore[arg-type]
    options = law.fit_options()
    sampler = LawSampler(world.space, settings, law.forms, world.cost, budget, options)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    runs: list[Run] = []
    steps, spent = [], 0.0
    while True:
        asked = []
        sampler.begin_pack(study)
        for _ in range(PACK_SIZE):
            if not sampler.within_budget(study):
                break
            asked.append(study.ask(fixed_distributions=sampler.distributions))
        if not asked:
            return steps
        params = [trial.params for trial in asked]
        pack = [
            (
                DesignPoint(p["lora_rank"], p["seq_len"], p["train_steps"]),
                (p["sequence_id"], p["seed"]),
            )
            for p in params
        ]
        for trial, run, charge in zip(asked, pack, world.charge(pack), strict=True):
            found = world.measure(*run)
            attributes = {
                "base_loss": found.base_loss,
                "final_loss": found.base_loss - found.delta_loss,
                "supervised_tokens": found.supervised_tokens,
                "gpu_seconds": charge.gpu_seconds,
                "charged_steps": charge.steps,
            }
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            study.tell(trial, found.delta_loss)
            spent += charge.gpu_seconds
        runs += pack
        steps.append(Step(spent, _errors(world, law, runs), tuple(runs)))


def _errors(world: World, law: LawOptions, runs: Sequence[Run]) -> Errors:
    r, t = np.array([[p.lora_rank, p.train_steps] for p in world.targets], float).T
    data = run_data(world, runs)
    try:
        average = average_laws(data, law.forms, law.fit_options())
        predicted = average.predict(r, world.target_tokens, t)
    except FitError:
        predicted = np.full(r.shape, float(np.mean(data.delta_loss)))
    of_truth = np.nan if world.truth is None else _rms(predicted - world.truth)
    return Errors(_rms(predicted[:, None] - world.heldout), of_truth)


def _rms(errors: FloatArray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def run_data(world: World, runs: Sequence[Run]) -> LawData:
    """The runs as the points of a fit."""
    found = [world.measure(*run) for run in runs]
    pairs = sorted(world.space.replicates)
    base = np.array([m.base_loss for m in found])
    delta = np.array([m.delta_loss for m in found])
    return LawData(
        lora_rank=np.array([p.lora_rank for p, _ in runs], dtype=float),
        seq_len=np.array([m.supervised_tokens for m in found], dtype=float),
        train_steps=np.array([p.train_steps for p, _ in runs], dtype=float),
        delta_loss=delta,
        base_loss=base,
        final_loss=base - delta,
        cluster=np.array([pairs.index(pair) for _, pair in runs], dtype=np.int64),
    )
