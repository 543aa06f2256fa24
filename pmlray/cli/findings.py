"""What a search found, in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_law_json(law: Mapping[str, Any]) -> str:
    """A fitted law with intervals, from its JSON object."""
    lines = [
        f"{law['form']} law of delta_loss (nats per token), {law['n_obs']} points"
        f" ({law['n_censored']} censored), status {law['status']}"
    ]
    names = ("coef", "rank_exponent", "len_exponent", "offset", "budget_exponent", "sharpness")
    for name in names:
        if name in law["intervals"]:
            low, high = law["intervals"][name]
            lines.append(f"  {name:16} {law[name]:10.4g}   90 % interval [{low:.4g}, {high:.4g}]")
    for name in ("r2", "mape", "heldout_mape", "extrapolation_mape"):
        if law.get(name) is not None:
            lines.append(f"  {name:16} {law[name]:10.4f}")
    if law.get("message"):
        lines.append(f"  {law['message']}")
    return "\n".join(lines)


def describe_result(found: Mapping[str, Any]) -> str:
    """The whole result of a search."""
    seconds = found["gpu_seconds"]
    lines = [
        f"{found['search_id']}: {found['n_observations']} law observations in {found['rounds']}"
        f" rounds, {found['n_failed']} failed; {seconds['spent']:.0f} of {seconds['budget']:.0f}"
        " gpu_seconds"
    ]
    lines.append(describe_law_json(found["law"]) if found["law"] else "too few points for a law")
    for pair in found["memft"]:
        point = pair["point"]
        lines.append(
            f"  {pair['method']} against sft at lora_rank={point['lora_rank']}"
            f" seq_len={point['seq_len']} sequence={pair['sequence_id']} seed={pair['seed']}:"
            f" token_recall {pair['memft']['token_recall']:.3f} / {pair['sft']['token_recall']:.3f}"
            f", exact_recall {pair['memft']['exact_recall']:.2f} /"
            f" {pair['sft']['exact_recall']:.2f}"
        )
    lines.append(f"report: {found['report']}")
    lines.append(f"MLflow: mlflow ui --backend-store-uri {found.get('tracking_uri', '')}")
    return "\n".join(lines)
