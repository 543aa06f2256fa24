"""A law's summary as JSON types: its targets and the structure of its residuals."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pmlray.law.data import LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.fitting.fit import LawFit
from pmlray.law.placement_worth import depth_worths, kind_worths, placement_worths
from pmlray.law.validation.correlation import entangled_pairs, param_correlations
from pmlray.law.validation.residuals import ResidualStructure
from pmlray.law.validation.unseen import UnseenErrors

if TYPE_CHECKING:
    from pmlray.law.target_predictions import TargetPrediction


def target_json(target: TargetPrediction) -> dict[str, Any]:
    """Return a prediction at a target, with the bits that it implies are stored."""
    losses = {"delta_loss": target.delta_loss, "low": target.low, "high": target.high}
    names = ("stored_bits", "stored_bits_low", "stored_bits_high")
    bits = [target.point.seq_len * loss / math.log(2.0) for loss in losses.values()]
    run = {"run_low": target.run_low, "run_high": target.run_high, "far": target.far}
    if target.placement is not None:
        n_params = target.point.lora_rank * target.placement.params_per_rank
        run |= {"placement": target.placement.name, "adapter_params": n_params}
    return target.point.to_json() | losses | run | dict(zip(names, bits, strict=True))


def unseen_json(found: UnseenErrors) -> dict[str, Any]:
    """Return the errors at points held out, null where too few points are left."""
    errors = {
        "heldout": found.heldout,
        "new_sequence": found.new_sequence,
        "extrapolation": found.extrapolation,
    }
    return {name: None if error is None else asdict(error) for name, error in errors.items()}


def correlations_json(fit: LawFit) -> dict[str, Any]:
    """Return the correlations of a fit's parameters, null where they are undefined."""
    matrix = [
        [None if math.isnan(x) else x for x in row] for row in param_correlations(fit).tolist()
    ]
    entangled = [asdict(pair) for pair in entangled_pairs(fit)]
    names = list(fit.law.param_names)
    return {"parameters": names, "matrix": matrix, "entangled": entangled}


def worths_json(data: LawData, samples: AveragedSamples) -> dict[str, Any]:
    """Return what a parameter is worth by placement, kind of module and depth; empty where the
    points have one placement."""
    if not data.several_placements:
        return {}
    found = {"placements": placement_worths(data, samples)}
    sites = [site for placement in data.placements for site in placement.sites]
    if any(site.kind != "other" for site in sites):
        found["kinds"] = kind_worths(samples)
    if any(site.depth is not None for site in sites):
        found["depths"] = depth_worths(samples)
    return {"worth": {name: [w.to_json() for w in worths] for name, worths in found.items()}}


def residuals_json(found: ResidualStructure) -> dict[str, Any]:
    """Return the structure left in the residuals, with every point's own, as JSON types."""
    names = ("lora_rank", "seq_len", "train_steps", "predicted", "residual")
    points = found.points
    places: list[dict[str, str]] = [{}] * len(points)
    if points.placement is not None and points.several_placements:
        names_K = [placement.name for placement in points.placements]
        places = [{"placement": names_K[k]} for k in points.placement.tolist()]
    return {
        "structure_left": list(found.left),
        "trends": [asdict(trend) for trend in found.trends],
        "spread": None if found.spread is None else asdict(found.spread),
        "points": [
            dict(zip(names, row, strict=True)) | place
            for place, *row in zip(
                *(places, points.lora_rank.tolist(), points.seq_len.tolist()),
                *(points.train_steps.tolist(), found.predicted.tolist()),
                found.residual.tolist(),
                strict=True,
            )
        ],
    }
