"""Noise of single runs about the law: by their level, within a text and between texts.

Shapes: B problems, N points, C texts with two points or more, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray, IntArray

# What follows was measured on the shipped tables (searches/tables): see
# scripts/bench/results/calibration.md. A run whose loss fell by a memorised share x of the base
# loss differs from the law by about TYPICAL x of the base loss, within a factor e^SPREAD.
TYPICAL, SPREAD = 0.08, 0.7
# Of that variance, what all runs of one text share.
SHARED = 0.2
# No run is told better than this share of the base loss: where training stops decides there.
FLOOR_SHARE = 0.01
# Nor does noise fall with a memorised share below this.
LEAST_SHARE = 0.05
# How sharply the noise ends where a run has learnt all there is: that of a ceiling of this n.
CEILING_SHARPNESS = 6.0


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Standard deviation of a run's delta_loss by the level that the law predicts.

    `sigma`: that of a run, as a share of what it memorised. `base_loss`, nats per token: the loss
    without an adapter, or where it is not known the largest delta_loss, which then is no ceiling
    (`capped`). `offset`, nats per token: the part of delta_loss that is no memory and hardly
    differs between runs.
    """

    sigma: float
    base_loss: float
    offset: float
    capped: bool = True

    @property
    def floor(self) -> float:
        """The noise that no run is without, nats per token."""
        return FLOOR_SHARE * self.base_loss

    def unit(self, delta_loss: ArrayLike, base_loss: ArrayLike | None = None) -> FloatArray:
        """Standard deviation without the floor at sigma = 1, nats per token, at a level; base_loss
        where it is a run's own."""
        level = np.asarray(delta_loss, dtype=float)
        base = np.asarray(self.base_loss if base_loss is None else base_loss, dtype=float)
        memorised = np.maximum(level - self.offset, LEAST_SHARE * self.base_loss)
        if not self.capped:
            return memorised
        share = np.clip(level / base, 0.0, 1.0)
        left = 1.0 - share**CEILING_SHARPNESS
        return memorised * left ** (1.0 + 1.0 / CEILING_SHARPNESS)

    def sd(self, delta_loss: ArrayLike) -> FloatArray:
        """Standard deviation of one run of a text of its own, nats per token, any shape."""
        return np.hypot(self.sigma * self.unit(delta_loss), self.floor)


@dataclass(frozen=True, slots=True)
class Whitening:
    """The noise of B problems at N points, which turns residuals into independent ones.

    `own_BN`: what is a run's own, nats per token. `shared_BN`: the standard deviation of what runs
    of one text share. `member_NC`: 1 where a point is of a text that has others. The covariance is
    own^2 on the diagonal and shared shared' within a text; its inverse root is that of a diagonal
    and a rank-one matrix (Sherman and Morrison 1950, doi:10.1214/aoms/1177729893).
    """

    own_BN: FloatArray
    shared_BN: FloatArray
    member_NC: FloatArray

    def rows(self, rows: IntArray) -> Whitening:
        """The noise of some of the problems."""
        return Whitening(self.own_BN[rows], self.shared_BN[rows], self.member_NC)

    def _directions(self) -> tuple[FloatArray, FloatArray]:
        """Unit vectors (B, N, C) along which texts differ, and how much longer noise is there."""
        v_BNC = (self.shared_BN / self.own_BN)[:, :, None] * self.member_NC
        length_BC = np.linalg.norm(v_BNC, axis=1)
        return v_BNC / np.maximum(length_BC, 1e-300)[:, None], np.sqrt(1.0 + length_BC**2)

    def whiten(self, values: FloatArray) -> FloatArray:
        """Values (B, N) or (B, N, P) over the noise."""
        flat = values.ndim == 2
        scaled = (values[:, :, None] if flat else values) / self.own_BN[:, :, None]
        if self.member_NC.shape[1]:
            along_BNC, stretch_BC = self._directions()
            parts_BCP = along_BNC.transpose(0, 2, 1) @ scaled
            scaled = scaled - along_BNC @ ((1.0 - 1.0 / stretch_BC)[:, :, None] * parts_BCP)
        return scaled[:, :, 0] if flat else scaled

    def log_det(self) -> FloatArray:
        """Logarithm of the covariance's root's determinant (B,)."""
        own = np.log(self.own_BN).sum(axis=1)
        if not self.member_NC.shape[1]:
            return own
        return own + np.log(self._directions()[1]).sum(axis=1)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """One noise of every problem, nats per token, (B, N)."""
        own = self.own_BN * rng.standard_normal(self.own_BN.shape)
        text = rng.standard_normal((len(own), self.member_NC.shape[1]))
        return own + self.shared_BN * (text @ self.member_NC.T)


def whitening(
    unit_N: FloatArray, floor_N: FloatArray, sigma_B: FloatArray, cluster_N: IntArray
) -> Whitening:
    """The noise of points whose `RunNoise.unit` and floor are known, at B sizes of sigma.

    A point that is alone in its text has all of its noise for itself. Texts come in the order of
    their first points, so that drawn noise is the same whatever numbers a reader gives them.
    """
    _, first, place, counts = np.unique(
        cluster_N, return_index=True, return_inverse=True, return_counts=True
    )
    place = place.reshape(-1)
    in_order = np.argsort(first)
    texts = in_order[counts[in_order] > 1]
    member_NC = (place[:, None] == texts).astype(float)
    with_others_N = member_NC.any(axis=1)
    variance_BN = (sigma_B[:, None] * unit_N) ** 2
    shared_BN = np.sqrt(SHARED * variance_BN) * with_others_N
    own_BN = np.sqrt(variance_BN - shared_BN**2 + floor_N**2)
    return Whitening(own_BN, shared_BN, member_NC)
