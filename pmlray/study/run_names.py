"""Names and tags of runs, the same wherever they are shown."""

from __future__ import annotations

from typing import Any

from pmlray.types import DesignPoint, Observation, PlannedRun

# Digits of a run_key that tell runs of one point and method apart in their names.
KEY_DIGITS = 4


def run_name(run: Observation | PlannedRun) -> str:
    """Return a short name that begins with what differs between the runs it is listed with: the
    point of a run for the law, the method of one that is compared at its point.

    Example:
        `r8 l64 t200 sft 1a2b` and `memft_ot r8 l64 t200 3c4d`
    """
    parts = [short_point(run.point), run.method]
    if run.phase != "law":
        parts.reverse()
    return " ".join([*parts, run.run_key[:KEY_DIGITS]])


def short_point(point: DesignPoint) -> str:
    """Return a point as `r8 l64 t200`: rank, supervised tokens, steps; then its schedule and its
    placement, where it has its own."""
    at = f"r{point.lora_rank} l{point.seq_len} t{point.train_steps}"
    return " ".join([at, *(own for own in (point.schedule, point.placement) if own is not None)])


def pair_name(run: Observation | PlannedRun) -> str:
    """Return what the runs of all methods share that are compared with each other: the point, the
    text and the seed."""
    return f"{point_name(run.point)} sequence={run.sequence_id} seed={run.seed}"


def point_name(point: DesignPoint) -> str:
    """Return a point as `name=value`, its placement first where it has one."""
    return " ".join(f"{name}={value}" for name, value in _placed_first(point).items())


def _placed_first(point: DesignPoint) -> dict[str, Any]:
    at = {} if point.placement is None else {"placement": point.placement}
    return at | point.to_json()


def run_tags(run: Observation | PlannedRun) -> dict[str, str]:
    """Return the tags by which runs are found, filtered and grouped."""
    tags = {
        "pmlray.kind": "observation",
        "pmlray.run_key": run.run_key,
        "pmlray.method": run.method,
        "pmlray.pair": pair_name(run),
        "pmlray.phase": run.phase,
        "pmlray.lora_rank": str(run.point.lora_rank),
        "pmlray.seq_len": str(run.point.seq_len),
        "pmlray.sequence_id": str(run.sequence_id),
        "pmlray.seed": str(run.seed),
    }
    if run.point.placement is not None:
        tags["pmlray.placement"] = run.point.placement
    if isinstance(run, Observation):
        tags["pmlray.dtype"] = str(run.provenance.get("dtype", ""))
    return tags
