"""A law in ranks of another placement, a constant number of which are worth one of its own."""

from __future__ import annotations

import math
from dataclasses import replace

from pmlray.law.data import FloatArray
from pmlray.law.forms.broken import BrokenLaw
from pmlray.law.forms.ceiling import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.forms.power import PowerLaw
from pmlray.law.forms.protocol import Law


def in_ranks_of(law: Law, log_factor: float) -> Law:
    """Return the law of the same delta_loss in ranks of which one is worth e^log_factor of its
    own."""
    assert isinstance(law, PowerLaw | CeilingLaw | ExponentialCeilingLaw | BrokenLaw)
    drift = law.drift
    if drift is not None:
        drift = replace(drift, log_rank=drift.log_rank - log_factor)
    coef = law.coef * math.exp(law.rank_exponent * log_factor)
    if isinstance(law, BrokenLaw):
        broken_at = law.break_rank * math.exp(-log_factor)
        return replace(law, coef=coef, drift=drift, break_rank=broken_at)
    return replace(law, coef=coef, drift=drift)


def rank_slope(
    law: Law, lora_rank: FloatArray, seq_len: FloatArray, train_steps: FloatArray
) -> FloatArray:
    """Return the exponent of the rank at points (N,): d log amplitude / d log rank."""
    slope = law.rank_exponent + 0.0 * lora_rank
    if law.drift is not None:
        axes = law.drift.axes(lora_rank, seq_len, train_steps)
        slope = slope + law.drift.rank_slopes(*axes) @ law.drift.coefs
    if isinstance(law, BrokenLaw):
        slope = slope - law.bend(lora_rank)[2]
    return slope
