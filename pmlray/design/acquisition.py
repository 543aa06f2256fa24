"""How much a measurement would tell about the law where it must be known.

Shapes: P law parameters, N measured or pending points, M candidates, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmlray.law import LawFit
from pmlray.types import DesignPoint

# A tenth of a parameter's scale: what is believed before any point speaks.
PRIOR_INFORMATION = 1e-2
LN2 = math.log(2.0)


def variance_reduction(
    fit: LawFit,
    known: Sequence[DesignPoint],
    candidates: Sequence[DesignPoint],
    targets: Sequence[DesignPoint],
    base_loss: float,
) -> NDArray[np.float64]:
    """Share of the mean predictive variance at the targets that each candidate would remove, (M,).

    With information M = J^T J / s^2 of the known points, adding g changes the covariance by
    -(M^-1 g)(M^-1 g)^T / (s^2 + g^T M^-1 g) (Sherman-Morrison); the V-criterion averages it over
    the targets (Atkinson, Donev and Tobias 2007, section 10.6). The power form drops saturated
    points from its fit, so a point it predicts below ln 2 tells it nothing.
    """
    variance = max(fit.sigma, 1e-3) ** 2
    jac_NP = _informative(fit, known, base_loss)
    jac_MP = _informative(fit, candidates, base_loss)
    jac_TP = _jacobian(fit, targets)
    # Parameters differ by orders of magnitude; the ridge must mean the same for each.
    scale_P = np.maximum(np.abs(fit.law.params), 1.0)
    jac_NP, jac_MP, jac_TP = jac_NP * scale_P, jac_MP * scale_P, jac_TP * scale_P
    information = jac_NP.T @ jac_NP / variance + PRIOR_INFORMATION * np.eye(jac_TP.shape[1])
    covariance = np.linalg.inv(information)
    now = np.einsum("tp,pq,tq->t", jac_TP, covariance, jac_TP).sum()
    cross_MT = jac_MP @ covariance @ jac_TP.T
    own_M = np.einsum("mp,pq,mq->m", jac_MP, covariance, jac_MP)
    return (cross_MT**2).sum(axis=1) / (variance + own_M) / max(now, 1e-12)


def _jacobian(fit: LawFit, points: Sequence[DesignPoint]) -> NDArray[np.float64]:
    r, length, t = (
        np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float)
        .reshape(-1, 3)
        .T
    )
    return fit.law.jacobian(r, length, t)


def _informative(
    fit: LawFit, points: Sequence[DesignPoint], base_loss: float
) -> NDArray[np.float64]:
    jac = _jacobian(fit, points)
    if fit.law.form != "power" or not points:
        return jac
    r, length, t = np.array(
        [[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float
    ).T
    saturated = base_loss - fit.law.predict(r, length, t) <= LN2
    return np.where(saturated[:, None], 0.0, jac)
