"""What a policy's replays say: errors by share of the full grid's cost, and shares to an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scripts.bench.design.offline import Errors, FloatArray, Step, World

SHARES = np.arange(0.01, 1.0001, 0.01)
SHOWN_SHARES = (0.05, 0.1, 0.2)
FACTOR = 1.1
RESAMPLES = 400


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


def evaluate(by_policy: dict[str, list[Curve]], longest: float) -> dict[str, dict[str, Any]]:
    """Of every policy in the same worlds: the share to FACTOR times the full grid's error, the
    errors at SHOWN_SHARES, and those errors over random's."""
    return {
        "cost_share_to_1_1": {
            policy: _share_with_interval(curves, longest) for policy, curves in by_policy.items()
        },
        "error": {
            policy: {str(share): _known(_pooled_error(curves, share)) for share in SHOWN_SHARES}
            | {"full_grid": float(np.sqrt(np.mean([c.full_rmse**2 for c in curves])))}
            for policy, curves in by_policy.items()
        },
        "error_over_random": {
            policy: {
                str(share): _error_ratio(curves, by_policy["random"], share)
                for share in SHOWN_SHARES
            }
            for policy, curves in by_policy.items()
            if "random" in by_policy and policy != "random"
        },
    }


def _pooled_error(curves: Sequence[Curve], share: float) -> float:
    """Root mean square error over the replays at one of SHARES, nats; NaN before a first pack."""
    at = int(np.argmin(np.abs(SHARES - share)))
    return float(np.sqrt(np.mean([c.rmse[at] ** 2 for c in curves])))


def _error_ratio(
    curves: Sequence[Curve], others: Sequence[Curve], share: float
) -> dict[str, float | None]:
    """One policy's error over another's in the same worlds, with its central 90 % interval by a
    paired bootstrap over the worlds, as many as both have been replayed in."""
    n = min(len(curves), len(others))
    rng = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(n, size=n)
        again.append(
            _pooled_error([curves[i] for i in drawn], share)
            / _pooled_error([others[i] for i in drawn], share)
        )
    low, high = np.quantile(again, [0.05, 0.95])
    value = _pooled_error(curves[:n], share) / _pooled_error(others[:n], share)
    return {"value": _known(value), "low": _known(low), "high": _known(high), "n": n}


def _share_to(curves: Sequence[Curve], longest: float) -> float:
    """Share of the grid's cost from which the error stays within FACTOR of the full grid's.

    Errors are root mean squares over the replays. inf when that is beyond `longest`.
    """
    pooled = np.sqrt(np.mean([c.rmse**2 for c in curves], axis=0))
    limit = FACTOR * np.sqrt(np.mean([c.full_rmse**2 for c in curves]))
    above = np.flatnonzero((longest + 1e-9 >= SHARES) & ~(pooled <= limit))
    first = above[-1] + 1 if above.size else 0
    found = SHARES[first] if first < SHARES.size else np.inf
    return float(found) if found <= longest + 1e-9 else float("inf")


def _share_with_interval(curves: Sequence[Curve], longest: float) -> dict[str, float | None]:
    """`_share_to` with its median and central 90 % interval over resampled replays.

    Policies with as many replays are resampled alike: a paired bootstrap. None: not within
    `longest`.
    """
    rng = np.random.default_rng(0)
    again = [
        _share_to([curves[i] for i in rng.integers(len(curves), size=len(curves))], longest)
        for _ in range(RESAMPLES)
    ]
    # Order statistics: interpolating between inf and inf is NaN.
    ordered = np.sort(again)
    return {
        "value": _known(_share_to(curves, longest)),
        "median": _known(ordered[RESAMPLES // 2]),
        "low": _known(ordered[RESAMPLES // 20]),
        "high": _known(ordered[RESAMPLES - 1 - RESAMPLES // 20]),
        "n": len(curves),
    }


def _known(value: float) -> float | None:
    """None, which JSON has, for a share that was not reached or an error before the first pack."""
    return float(value) if np.isfinite(value) else None


def share_line(policy: str, found: dict[str, dict[str, Any]]) -> str:
    """One policy of `evaluate` as a line of a table."""
    at = found["cost_share_to_1_1"][policy]
    value, low, high = (
        "not reached" if at[name] is None else f"{at[name]:.2f}"
        for name in ("value", "low", "high")
    )
    errors = ", ".join(
        f"{share} {'-' if e is None else f'{e:.3f}'}" for share, e in found["error"][policy].items()
    )
    return f"{policy:17s} {value} [{low}, {high}] n={at['n']}  error at share {errors}"
