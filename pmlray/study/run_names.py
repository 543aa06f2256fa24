"""Names and tags of runs, the same wherever they are shown."""

from __future__ import annotations

from pmlray.types import Observation, PlannedRun


def run_name(run: Observation | PlannedRun) -> str:
    """Return a readable name, unique within a search."""
    point = run.point
    return (
        f"{run.phase} {run.method} lora_rank={point.lora_rank} seq_len={point.seq_len}"
        f" train_steps={point.train_steps} sequence={run.sequence_id} seed={run.seed}"
    )


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
    if isinstance(run, Observation):
        tags["pmlray.dtype"] = str(run.provenance.get("dtype", ""))
    return tags
