"""A law's summary as JSON types: its targets and the structure of its residuals."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pmlray.law.validation.residuals import ResidualStructure

if TYPE_CHECKING:
    from pmlray.law.target_predictions import TargetPrediction


def target_json(target: TargetPrediction) -> dict[str, Any]:
    """Return a prediction at a target, with the bits that it implies are stored."""
    losses = {"delta_loss": target.delta_loss, "low": target.low, "high": target.high}
    names = ("stored_bits", "stored_bits_low", "stored_bits_high")
    bits = [target.point.seq_len * loss / math.log(2.0) for loss in losses.values()]
    run = {"run_low": target.run_low, "run_high": target.run_high, "far": target.far}
    return asdict(target.point) | losses | run | dict(zip(names, bits, strict=True))


def residuals_json(found: ResidualStructure) -> dict[str, Any]:
    """Return the structure left in the residuals, with every point's own, as JSON types."""
    names = ("lora_rank", "seq_len", "train_steps", "predicted", "residual")
    return {
        "structure_left": list(found.left),
        "trends": [asdict(trend) for trend in found.trends],
        "spread": None if found.spread is None else asdict(found.spread),
        "points": [
            dict(zip(names, row, strict=True))
            for row in zip(
                *(found.points.lora_rank.tolist(), found.points.seq_len.tolist()),
                *(found.points.train_steps.tolist(), found.predicted.tolist()),
                found.residual.tolist(),
                strict=True,
            )
        ],
    }
