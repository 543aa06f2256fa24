"""Policies replayed offline: the planner's own code path, with a measurement looked up or made up.

A replay asks LawSampler for packs through an Optuna study, exactly as a search does, and answers
with what a synthetic truth or a table of real runs holds.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray

from pmlray.backends.optuna_sampler import LawSampler
from pmlray.design import CostModel, DesignSettings, DesignSpace
from pmlray.law import Form, LawData
from pmlray.types import DesignPoint

PACK_SIZE = 8
POLICIES = (
    "v_optimal", "v_optimal_single", "d_optimal", "sobol", "lhs", "random", "cheapest_first", "tpe",
    "gp",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one run yields; losses in nats per token, cost in gpu_seconds."""

    delta_loss: float
    base_loss: float
    gpu_seconds: float


FloatArray = NDArray[np.float64]
Measure = Callable[[DesignPoint, int, int], Measured]
Predict = Callable[[LawData], FloatArray]


@dataclass(frozen=True)
class World:
    """A grid that may be measured, and held-out points that no policy ever sees.

    `measure(point, sequence_id, seed)`; `targets`: T points where predictions count; `heldout`
    (T, S): runs of S sequences there, nats; `truth` (T,): what they are without noise, where known.
    """

    space: DesignSpace
    measure: Measure
    targets: tuple[DesignPoint, ...]
    heldout: FloatArray
    cost: CostModel
    truth: FloatArray | None = None

    @property
    def grid_cost(self) -> float:
        """gpu_seconds of every run of the grid."""
        return sum(
            self.measure(cell, *replicate).gpu_seconds
            for cell in self.space.cells
            for replicate in self.space.replicates
        )


@dataclass(frozen=True)
class Errors:
    """Root mean square errors at the targets, nats: of held-out runs, whose own noise no prediction
    can avoid, and of the truth behind them (NaN where it is not known)."""

    heldout: float
    truth: float


@dataclass(frozen=True)
class Step:
    """After a pack: gpu_seconds spent, and the errors of what is then predicted."""

    gpu_seconds: float
    errors: Errors


def errors_of(world: World, predicted: FloatArray) -> Errors:
    """The errors of predictions (T,) at the world's targets."""
    of_truth = np.nan if world.truth is None else _rms(predicted - world.truth)
    return Errors(_rms(predicted[:, None] - world.heldout), of_truth)


def _rms(errors: FloatArray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def everything(world: World) -> LawData:
    """Every run of the grid."""
    runs = [(cell, pair) for cell in world.space.cells for pair in world.space.replicates]
    return _data(world, runs)


def replay(
    world: World,
    policy: str,
    seed: int,
    share: float,
    forms: Sequence[Form],
    predict: Predict,
) -> list[Step]:
    """The error at the targets after every pack, until `share` of the grid's cost is spent."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budget = share * world.grid_cost
    settings = DesignSettings(PACK_SIZE, 0.2, world.targets, policy, seed)  # type: ignore[arg-type]
    sampler = LawSampler(world.space, settings, forms, world.cost, budget)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    runs: list[tuple[DesignPoint, tuple[int, int]]] = []
    steps, spent = [], 0.0
    while True:
        asked = []
        for _ in range(PACK_SIZE):
            if not sampler.within_budget(study):
                break
            asked.append(study.ask(fixed_distributions=sampler.distributions))
        if not asked:
            return steps
        for trial in asked:
            p = trial.params
            point = DesignPoint(p["lora_rank"], p["seq_len"], p["train_steps"])
            pair = (p["sequence_id"], p["seed"])
            found = world.measure(point, *pair)
            runs.append((point, pair))
            spent += found.gpu_seconds
            trial.set_user_attr("base_loss", found.base_loss)
            trial.set_user_attr("final_loss", found.base_loss - found.delta_loss)
            trial.set_user_attr("gpu_seconds", found.gpu_seconds)
            study.tell(trial, found.delta_loss)
        steps.append(Step(spent, errors_of(world, predict(_data(world, runs)))))


SHARES = np.arange(0.01, 1.0001, 0.01)


@dataclass(frozen=True)
class Curve:
    """One replay: an error at each of SHARES of the grid's cost (NaN before the first pack), and
    that of the full grid in the same world; nats."""

    rmse: FloatArray
    full_rmse: float


def curve(
    world: World, steps: Sequence[Step], full: Errors, which: Literal["heldout", "truth"]
) -> Curve:
    """A replay's steps as a curve over SHARES of one of the errors."""
    at = np.array([step.gpu_seconds for step in steps]) / world.grid_cost
    last = np.searchsorted(at, SHARES + 1e-9, side="right") - 1
    errors = np.array([getattr(step.errors, which) for step in steps])
    return Curve(np.where(last >= 0, errors[np.maximum(last, 0)], np.nan), getattr(full, which))


def pooled_error(curves: Sequence[Curve], share: float) -> float:
    """Root mean square error over the replays at one of SHARES, nats."""
    at = int(np.argmin(np.abs(SHARES - share)))
    return float(np.sqrt(np.mean([c.rmse[at] ** 2 for c in curves])))


def error_ratio(curves: Sequence[Curve], others: Sequence[Curve], share: float) -> dict[str, float]:
    """One policy's error over another's in the same worlds, with its central 90 % interval by a
    paired bootstrap over the worlds."""
    rng = np.random.default_rng(0)
    again = []
    for _ in range(400):
        drawn = rng.integers(len(curves), size=len(curves))
        again.append(
            pooled_error([curves[i] for i in drawn], share)
            / pooled_error([others[i] for i in drawn], share)
        )
    low, high = np.quantile(again, [0.05, 0.95])
    value = pooled_error(curves, share) / pooled_error(others, share)
    return {"value": value, "low": float(low), "high": float(high)}


def share_to(curves: Sequence[Curve], factor: float, longest: float) -> float:
    """Share of the grid's cost from which the error stays within `factor` of the full grid's.

    Errors are root mean squares over the replays. inf when that is beyond `longest`.
    """
    pooled = np.sqrt(np.mean([c.rmse**2 for c in curves], axis=0))
    limit = factor * np.sqrt(np.mean([c.full_rmse**2 for c in curves]))
    within = (longest + 1e-9 >= SHARES) & ~(pooled <= limit)
    last_above = np.flatnonzero(within)
    first = last_above[-1] + 1 if last_above.size else 0
    found = SHARES[first] if first < SHARES.size else np.inf
    return float(found) if found <= longest + 1e-9 else float("inf")


def share_with_interval(
    curves: Sequence[Curve], factor: float, longest: float, rng: np.random.Generator
) -> dict[str, float]:
    """`share_to` with its median and central 90 % interval over resampled replays.

    Policies are resampled alike when called with equally seeded generators (a paired bootstrap).
    """
    again = [
        share_to([curves[i] for i in rng.integers(len(curves), size=len(curves))], factor, longest)
        for _ in range(400)
    ]
    ordered = np.sort(again)
    return {
        "value": share_to(curves, factor, longest),
        "median": float(ordered[200]),
        "low": float(ordered[20]),
        "high": float(ordered[379]),
        "n": len(curves),
    }


def machine() -> dict[str, object]:
    """What a reader needs to place the numbers."""
    packages = ("numpy", "scipy", "optuna")
    return {
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def _data(world: World, runs: Sequence[tuple[DesignPoint, tuple[int, int]]]) -> LawData:
    found = [world.measure(point, *pair) for point, pair in runs]
    pairs = list(world.space.replicates)
    base = np.array([m.base_loss for m in found])
    delta = np.array([m.delta_loss for m in found])
    return LawData(
        lora_rank=np.array([p.lora_rank for p, _ in runs], dtype=float),
        seq_len=np.array([p.seq_len for p, _ in runs], dtype=float),
        train_steps=np.array([p.train_steps for p, _ in runs], dtype=float),
        delta_loss=delta,
        base_loss=base,
        final_loss=base - delta,
        cluster=np.array([pairs.index(pair) for _, pair in runs], dtype=np.int64),
    )
