"""Reasons for chosen runs in words, from the quantities that the rule compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pmlray.design.acquisition import LAW_RULES, DesignState
from pmlray.design.planner import DesignSettings, validates
from pmlray.design.space import DesignSpace, Replicate
from pmlray.types import DesignPoint

# Most targets that a reason names, in the order of how much the run sharpens them.
MOST_TARGETS = 2
# A target of whose variance a run removes less than this share is not named.
LEAST_SHARE = 0.005


def why_chosen(
    space: DesignSpace,
    settings: DesignSettings,
    known: DesignState,
    point: DesignPoint,
    replicate: Replicate,
) -> str:
    """Return the reason for choosing a run, as one clause; known: the state in which it was
    chosen."""
    rule = settings.acquisition
    if rule not in LAW_RULES:
        return f"rule {rule}"
    if len(known.chosen) < settings.n_initial or not known.beliefs:
        return "initial design"
    if validates(settings, known):
        return "checks the law far from what was measured"
    same = (point.family, replicate)
    trunk = [
        run.point.train_steps for run in known.pack if (run.point.family, run.replicate) == same
    ]
    gpu_seconds = known.cost.added(point, trunk)
    grid = known.field(rule, tuple(space.cells), tuple(settings.targets))
    if rule == "d_optimal":
        nats = float(grid.information(known.pending)[grid.place(point)])
        return f"d_optimal: {nats / gpu_seconds:.2g} nats of information per gpu_second"
    gain = float(grid.gains(known.pending)[grid.place(point)])
    value = f"{rule}: {gain / gpu_seconds:.2g} nats^2 of variance per gpu_second"
    before, after = grid.at_targets(known.pending, point)
    sharpened = _sharpened(settings.targets, before.tolist(), after.tolist())
    return f"{value}, {sharpened}" if sharpened else value


def _sharpened(
    targets: Sequence[DesignPoint], before: Sequence[float], after: Sequence[float]
) -> str:
    """Return the targets whose standard deviations fall most, nats per token."""
    share = [1.0 - b / a if a > 0 else 0.0 for a, b in zip(before, after, strict=True)]
    named = [
        f"{_named(targets[i])} +-{math.sqrt(before[i]):.2g} -> {math.sqrt(max(0.0, after[i])):.2g}"
        for i in map(int, np.argsort(share)[::-1][:MOST_TARGETS])
        if share[i] >= LEAST_SHARE
    ]
    return f"sharpens {', '.join(named)}" if named else ""


def _named(target: DesignPoint) -> str:
    where = "" if target.placement is None else f" at {target.placement}"
    return f"rank {target.lora_rank} x {target.seq_len} tokens{where}"
