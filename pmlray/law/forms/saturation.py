"""Ceiling on a predicted loss reduction that nears the base loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from pmlray.law.data import FloatArray


def saturate(
    z: ArrayLike, base_loss: ArrayLike, sharpness: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Cap z at L0; return delta and its derivatives (delta, d delta/dz, d delta/dlog n), broadcast.

    z, L0 and delta in nats per token, n dimensionless. With a = n log(z/L0), s = log(1 + e^a) and
    q = e^a / (1 + e^a): delta = z e^(-s/n), d delta/dz = e^(-(1 + 1/n) s) and
    d delta/dlog n = delta (s - a q) / n. z <= 0 gives (z, 1, 0) and a huge z (L0, 0, 0), never NaN.
    """
    z, cap, n = np.asarray(z, float), np.asarray(base_loss, float), np.asarray(sharpness, float)
    # The tiny floor stands for z <= 0, where the ceiling is out of reach.
    a = n * np.log(np.maximum(z / cap, 1e-300))
    s = np.logaddexp(0.0, a)
    delta = z * np.exp(-s / n)
    by_log_n = np.where(z > 0, delta * (s - a * expit(a)) / n, 0.0)
    return delta, np.exp(-(1.0 + 1.0 / n) * s), by_log_n


def unsaturate(delta_loss: ArrayLike, base_loss: ArrayLike, sharpness: ArrayLike) -> FloatArray:
    """Return the z that `saturate` turns into delta_loss (nats per token, broadcast); inf at or
    above L0."""
    delta, n = np.asarray(delta_loss, float), np.asarray(sharpness, float)
    x = np.clip(delta / np.asarray(base_loss, float), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = delta * np.exp(-np.log1p(-(x**n)) / n)
    return np.where(x >= 1.0, np.inf, z)


def saturate_exponentially(z: ArrayLike, base_loss: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return L0 (1 - e^(-z/L0)) and its derivative by z, e^(-z/L0), broadcast; (z, 1) where z <= 0.

    z, L0 and delta in nats per token. Value and slope meet at z = 0.
    """
    z, cap = np.asarray(z, float), np.asarray(base_loss, float)
    share = np.maximum(z, 0.0) / cap
    return np.where(z > 0, -cap * np.expm1(-share), z), np.exp(-share)


def unsaturate_exponentially(delta_loss: ArrayLike, base_loss: ArrayLike) -> FloatArray:
    """Return the z that `saturate_exponentially` turns into delta_loss, nats per token; inf at or
    above L0."""
    delta, cap = np.asarray(delta_loss, float), np.asarray(base_loss, float)
    x = np.clip(delta / cap, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.where(delta > 0, -cap * np.log1p(-x), delta)
