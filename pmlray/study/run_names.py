"""Names and tags of runs, the same wherever they are shown."""

from __future__ import annotations

from typing import Any

from pmlray.types import DesignPoint, Observation, PlannedRun


def run_name(run: Observation | PlannedRun) -> str:
    """Return a readable name, unique within a search."""
    return (
        f"{run.phase} {run.method} {point_name(run.point)} sequence={run.sequence_id}"
        f" seed={run.seed}"
    )


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
