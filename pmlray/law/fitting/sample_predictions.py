"""Predictions of many samples of one form's params at once.

Shapes: n samples, P parameters, M points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray
from pmlray.law.forms.broken import log_bend
from pmlray.law.forms.power import LARGEST_EXPONENT
from pmlray.law.forms.protocol import Law
from pmlray.law.forms.saturation import saturate, saturate_exponentially


def predict_samples(
    law: Law,
    params_nP: FloatArray,
    lora_rank: ArrayLike,
    seq_len: ArrayLike,
    train_steps: ArrayLike,
    base_loss: ArrayLike,
) -> FloatArray:
    """Return delta_loss by each of n sets of a law's params, nats per token: (n, ...), the points
    broadcast.

    base_loss: that of each sample and point, nats per token, broadcast to (n, ...); a form without
    a ceiling does not read it. The same as `law.with_params(params).predict(...)` one by one.
    """
    points = np.broadcast_arrays(*(np.asarray(x, float) for x in (lora_rank, seq_len, train_steps)))
    r, length, t = (x.ravel() for x in points)
    rows = [np.ones(r.size), np.log(r), -np.log(length), np.zeros(r.size)]
    if law.fits_budget:
        rows.append(np.log(t / law.ref_steps))
    if law.drift is not None:
        rows.extend(law.drift.terms(r, length, t).T)
    # A form's parameters beyond those of the power law come last.
    log_a = params_nP[:, : len(rows)] @ np.stack(rows)
    if law.form == "broken":
        log_a = log_a + log_bend(np.log(r) - params_nP[:, -1:], params_nP[:, -2:-1])[0]
    z = np.exp(np.minimum(log_a, LARGEST_EXPONENT)) + params_nP[:, 3:4]
    shape = (len(params_nP), *points[0].shape)
    cap = np.broadcast_to(base_loss, shape).reshape(z.shape)
    if law.form == "ceiling":
        z = saturate(z, cap, np.exp(params_nP[:, -1:]))[0]
    elif law.form == "exponential_ceiling":
        z = saturate_exponentially(z, cap)[0]
    return z.reshape(shape)
