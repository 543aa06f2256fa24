"""Advice on what to measure next when points do not identify a law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmlray.law.data import LawData

# Runs that identify each parameter, in the order in which one would measure them.
_OPENED_BY = {
    "rank_exponent": "runs at other ranks, away from saturation",
    "len_exponent": "runs at other lengths, away from saturation",
    "log_coef": "runs away from saturation",
    "budget_exponent": "runs of other train_steps",
    "offset": "longer sequences or smaller ranks, where delta_loss is small",
    "log_sharpness": "runs whose delta_loss is between 60 % and 95 % of the base loss",
    "rank_drop": "runs at ranks on both sides of the break",
    "log_break_rank": "runs at ranks on both sides of the break",
}


def what_next(points: LawData, unidentified: Sequence[str]) -> str:
    """Return one clause, `measure next: ...`, for points whose fit is UNDERDETERMINED."""
    wanted: list[str] = []
    if np.unique(points.lora_rank).size < 2:
        wanted.append("a second lora_rank")
    if np.unique(points.seq_len).size < 2:
        wanted.append("a second seq_len")
    wanted += [_OPENED_BY[name] for name in unidentified]
    if not wanted:
        wanted.append("more distinct (lora_rank, seq_len) points")
    return f"measure next: {', '.join(dict.fromkeys(wanted))}"
