"""delta_loss as a Gaussian field: the joint posterior of the fitted forms, and the gain of a run.

Shapes: F forms, P parameters of a form, G features, N points, M candidates, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pmlray.errors import DataError
from pmlray.law import CAPPED, LawFit, PlacedPoint
from pmlray.types import DesignPoint

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
# A point of the reference placement, or of a placement of its own.
Cell = DesignPoint | PlacedPoint
LN2 = math.log(2.0)


@dataclass(frozen=True)
class FittedForm:
    """One fitted form and its weight."""

    fit: LawFit
    weight: float


@dataclass(frozen=True)
class LawField:
    """Mixture of linearised forms as a Gaussian field with features phi and covariance S.

    With weights w_f, Jacobians J_f, parameter covariances V_f = L_f L_f', predictions mu_f and
    their weighted mean mu, the covariance of delta_loss between points a and b is
    sum_f w_f [J_f(a) V_f J_f(b)' + (mu_f(a) - mu(a)) (mu_f(b) - mu(b))]: what each form leaves
    open, and what the forms disagree on (the law of total covariance). phi stacks sqrt(w_f) J_f L_f
    and sqrt(w_f) (mu_f - mu), so that S starts as the identity. Of a law of several placements the
    parameters include what each is worth, so a run tells of its own placement and of its kin.
    """

    beliefs: tuple[FittedForm, ...]
    base_loss: float
    roots: tuple[FloatArray, ...]
    cov_GG: FloatArray

    def noise(self, points: Sequence[Cell]) -> FloatArray:
        """Return the variance of one run at each point (N,), nats^2: the forms' own, by their
        weights."""
        by_form = [
            b.weight * b.fit.noise.sd(b.fit.law.predict(*_axes(points, b.fit)[:3])) ** 2
            for b in self.beliefs
        ]
        return np.sum(by_form, axis=0)

    def features(self, points: Sequence[Cell], *, measured: bool) -> FloatArray:
        """Return phi of points, (N, G), as targets or, with `measured`, as points to measure.

        An uncapped form is not fitted to a saturated point, so measuring a point that it predicts
        below ln 2 does not reduce the uncertainty of its parameters.
        """
        open_: list[FloatArray] = []
        means: list[FloatArray] = []
        for belief, root in zip(self.beliefs, self.roots, strict=True):
            law = belief.fit.law
            r, length, t, place = _axes(points, belief.fit)
            mean = law.predict(r, length, t)
            jac = belief.fit.jacobian(r, length, t, place) @ root
            if measured and law.form not in CAPPED:
                jac = np.where((self.base_loss - mean <= LN2)[:, None], 0.0, jac)
            open_.append(math.sqrt(belief.weight) * jac)
            means.append(np.minimum(mean, self.base_loss))
        weights = np.array([belief.weight for belief in self.beliefs])
        mean_FN = np.stack(means)
        apart = np.sqrt(weights)[:, None] * (mean_FN - weights @ mean_FN)
        return np.concatenate([*open_, apart.T], axis=1)

    def after(self, points: Sequence[Cell]) -> LawField:
        """Return the field with these points measured: S - S phi' phi S / (noise + phi S phi')."""
        cov = self.cov_GG
        for phi, noise in zip(
            self.features(points, measured=True), self.noise(points), strict=True
        ):
            along = cov @ phi
            cov = cov - np.outer(along, along) / (noise + phi @ along)
        return replace(self, cov_GG=cov)

    def variance(self, points: Sequence[Cell]) -> FloatArray:
        """Return the variance of delta_loss at each point without noise, nats^2, (N,)."""
        phi = self.features(points, measured=False)
        return np.einsum("ng,gh,nh->n", phi, self.cov_GG, phi)

    def gains(self, candidates: Sequence[Cell], targets: Sequence[Cell]) -> FloatArray:
        """Return the decrease of the mean variance at the targets by each candidate, (M,).

        The V-criterion (Atkinson, Donev and Tobias 2007, section 10.6) of the mixture: with K the
        covariance, mean_t K(c, t)^2 / (noise + K(c, c)), nats^2.
        """
        phi_MG = self.features(candidates, measured=True)
        along_MG = phi_MG @ self.cov_GG
        own_M = np.einsum("mg,mg->m", along_MG, phi_MG)
        shared_MT = along_MG @ self.features(targets, measured=False).T
        return (shared_MT**2).mean(axis=1) / (self.noise(candidates) + own_M)

    def information(self, candidates: Sequence[Cell]) -> FloatArray:
        """Return each candidate's information on all parameters, log(1 + K(c, c) / noise), (M,):
        the D-criterion's gain (Atkinson, Donev and Tobias 2007, section 10.1)."""
        phi_MG = self.features(candidates, measured=True)
        own_M = np.einsum("mg,gh,mh->m", phi_MG, self.cov_GG, phi_MG)
        return np.log1p(own_M / self.noise(candidates))


def law_field(beliefs: Sequence[FittedForm], base_loss: float) -> LawField:
    """Build the field of fitted forms; base_loss (nats) caps the forms' predictions."""
    total = sum(belief.weight for belief in beliefs)
    shared = tuple(FittedForm(b.fit, b.weight / total) for b in beliefs)
    roots = tuple(_root(belief.fit.full_cov) for belief in shared)
    size = sum(root.shape[1] for root in roots) + len(roots)
    return LawField(shared, base_loss, roots, np.eye(size))


def _axes(
    points: Sequence[Cell], fit: LawFit
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray | None]:
    """Return the law's rank, seq_len and train_steps of points, each (N,), and the places of their
    placements, None where all are of the law's reference."""
    plain = [p.point if isinstance(p, PlacedPoint) else p for p in points]
    rows = [(p.lora_rank, p.seq_len, p.train_steps) for p in plain]
    r, length, t = np.array(rows, dtype=float).reshape(-1, 3).T
    placed = [p.placement if isinstance(p, PlacedPoint) else None for p in points]
    if not any(placed):
        return r, length, t, None
    known = () if fit.places is None else fit.places.effects.placements
    if strange := [p.name for p in placed if p is not None and p not in known]:
        raise DataError(
            f"the law knows nothing of the placement {strange[0]!r}: give LawData all placements of"
            " the design, also those without points"
        )
    assert fit.places is not None
    place = np.array([0 if p is None else known.index(p) for p in placed], dtype=np.int64)
    return fit.places.law_ranks(r, place), length, t, place


def _root(cov_PP: FloatArray) -> FloatArray:
    """Return L with L L' = cov, for a covariance that may be singular."""
    values, vectors = np.linalg.eigh((cov_PP + cov_PP.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0.0))
