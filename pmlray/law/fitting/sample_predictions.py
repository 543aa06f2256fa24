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
    shape = (len(params_nP), *points[0].shape)
    return _at_the_ceiling(law, params_nP, log_a, base_loss, shape)


def predict_placed_samples(
    law: Law,
    params_nP: FloatArray,
    log_factor_n: FloatArray,
    lora_rank: ArrayLike,
    seq_len: ArrayLike,
    train_steps: ArrayLike,
    base_loss: ArrayLike,
) -> FloatArray:
    """Return `predict_samples` in ranks of another placement, of which one is worth e^log_factor of
    the law's own under each sample."""
    points = np.broadcast_arrays(*(np.asarray(x, float) for x in (lora_rank, seq_len, train_steps)))
    r, length, t = (x.ravel() for x in points)
    log_r = np.log(r) + log_factor_n[:, None]
    log_a = params_nP[:, :1] + params_nP[:, 1:2] * log_r - params_nP[:, 2:3] * np.log(length)
    n_terms = 4
    if law.fits_budget:
        log_a = log_a + params_nP[:, 4:5] * np.log(t / law.ref_steps)
        n_terms = 5
    if law.drift is not None:
        terms_nMQ = law.drift.terms(np.exp(log_r), length, t)
        coefs_nQ = params_nP[:, n_terms : n_terms + terms_nMQ.shape[2]]
        log_a = log_a + (terms_nMQ @ coefs_nQ[:, :, None])[:, :, 0]
    if law.form == "broken":
        log_a = log_a + log_bend(log_r - params_nP[:, -1:], params_nP[:, -2:-1])[0]
    shape = (len(params_nP), *points[0].shape)
    return _at_the_ceiling(law, params_nP, log_a, base_loss, shape)


def _at_the_ceiling(
    law: Law,
    params_nP: FloatArray,
    log_a: FloatArray,
    base_loss: ArrayLike,
    shape: tuple[int, ...],
) -> FloatArray:
    """Return delta_loss, in the shape asked for, of log amplitudes (n, M)."""
    z = np.exp(np.minimum(log_a, LARGEST_EXPONENT)) + params_nP[:, 3:4]
    cap = np.broadcast_to(base_loss, shape).reshape(z.shape)
    if law.form == "ceiling":
        z = saturate(z, cap, np.exp(params_nP[:, -1:]))[0]
    elif law.form == "exponential_ceiling":
        z = saturate_exponentially(z, cap)[0]
    return z.reshape(shape)
