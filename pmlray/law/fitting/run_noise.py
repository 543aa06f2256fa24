"""Noise of single runs about the law: by their level, within a text and between texts.

Shapes: B problems, N points, C texts with two points or more, M points of these, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray, IntArray

# What follows was measured on the shipped tables (searches/tables): see
# scripts/bench/results/calibration.md. A run whose loss fell by a memorised share x of the base
# loss differs from the law by about TYPICAL x of the base loss, within a factor e^SPREAD.
TYPICAL, SPREAD = 0.08, 0.7
# Share of that variance that is common to all runs of one text.
SHARED = 0.2
# Least noise, as a share of the base loss: there it depends on where training stops.
FLOOR_SHARE = 0.01
# Below this memorised share the noise no longer falls with it.
LEAST_SHARE = 0.05
# Sharpness n with which the noise falls towards saturation, as that of a ceiling.
CEILING_SHARPNESS = 6.0


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Standard deviation of a run's delta_loss as a function of the predicted delta_loss.

    `sigma`: that of a run, as a share of what it memorised. `base_loss`, nats per token: the loss
    without an adapter, or where it is not known the largest delta_loss, which then is no ceiling
    (`capped` is False). `offset`, nats per token: the part of delta_loss that is not memorisation
    and hardly differs between runs.
    """

    sigma: float
    base_loss: float
    offset: float
    capped: bool = True

    @property
    def floor(self) -> float:
        """Least noise of any run, nats per token."""
        return FLOOR_SHARE * self.base_loss

    def unit(self, delta_loss: ArrayLike, base_loss: ArrayLike | None = None) -> FloatArray:
        """Return the standard deviation without the floor at sigma = 1, nats per token, at a
        predicted delta_loss. base_loss: that of each run, where it is known; by default the noise's
        own."""
        level = np.asarray(delta_loss, dtype=float)
        base = np.asarray(self.base_loss if base_loss is None else base_loss, dtype=float)
        memorised = np.maximum(level - self.offset, LEAST_SHARE * self.base_loss)
        if not self.capped:
            return memorised
        share = np.clip(level / base, 0.0, 1.0)
        left = 1.0 - share**CEILING_SHARPNESS
        return memorised * left ** (1.0 + 1.0 / CEILING_SHARPNESS)

    def sd(self, delta_loss: ArrayLike) -> FloatArray:
        """Return the standard deviation of one run of a text of its own, nats per token, any
        shape."""
        return np.hypot(self.sigma * self.unit(delta_loss), self.floor)


@dataclass(frozen=True, slots=True)
class Whitening:
    """Noise of B problems at N points, which turns residuals into independent ones.

    `own_BN`: standard deviation of each run's own part, nats per token. `shared_BN`: that of the
    part shared by the runs of one text. `member_M`: the points of texts with several, one text
    after the other; `text_M`: each one's text, from 0; `first_C`: where in these a text begins. The
    covariance is own^2 on the diagonal and shared shared' within a text; its inverse
    root is that of a diagonal and a rank-one matrix (Sherman and Morrison 1950,
    doi:10.1214/aoms/1177729893).
    """

    own_BN: FloatArray
    shared_BN: FloatArray
    member_M: IntArray
    text_M: IntArray
    first_C: IntArray

    def rows(self, rows: IntArray) -> Whitening:
        """Return the noise of a selection of the problems."""
        return replace(self, own_BN=self.own_BN[rows], shared_BN=self.shared_BN[rows])

    def _directions(self) -> tuple[FloatArray, FloatArray]:
        """Return the unit vectors (B, M) along which texts differ, and the stretch of the noise
        along them (B, C)."""
        v_BM = (self.shared_BN / self.own_BN)[:, self.member_M]
        length_BC = np.sqrt(self._sums(v_BM**2))
        return v_BM / np.maximum(length_BC, 1e-300)[:, self.text_M], np.hypot(1.0, length_BC)

    def _sums(self, values_BM: FloatArray) -> FloatArray:
        """Return the sum over each text of values (B, M) or (B, M, P)."""
        return np.add.reduceat(values_BM, self.first_C, axis=1)

    def whiten(self, values: FloatArray) -> FloatArray:
        """Divide values (B, N) or (B, N, P) by the noise, that is, by the root of its
        covariance."""
        flat = values.ndim == 2
        scaled = (values[:, :, None] if flat else values) / self.own_BN[:, :, None]
        if self.member_M.size:
            along_BM, stretch_BC = self._directions()
            parts_BCP = self._sums(along_BM[:, :, None] * scaled[:, self.member_M])
            left_BCP = (1.0 - 1.0 / stretch_BC)[:, :, None] * parts_BCP
            scaled[:, self.member_M] -= along_BM[:, :, None] * left_BCP[:, self.text_M]
        return scaled[:, :, 0] if flat else scaled

    def log_det(self) -> FloatArray:
        """Return the log determinant of the covariance's root, (B,)."""
        own = np.log(self.own_BN).sum(axis=1)
        if not self.member_M.size:
            return own
        return own + np.log(self._directions()[1]).sum(axis=1)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """Draw the noise of every problem once, nats per token, (B, N)."""
        drawn = self.own_BN * rng.standard_normal(self.own_BN.shape)
        text_BC = rng.standard_normal((len(drawn), self.first_C.size))
        drawn[:, self.member_M] += self.shared_BN[:, self.member_M] * text_BC[:, self.text_M]
        return drawn


def whitening(
    unit_N: FloatArray, floor_N: FloatArray, sigma_B: FloatArray, cluster_N: IntArray
) -> Whitening:
    """Build the noise of points whose `RunNoise.unit` and floor are known, at B sizes of sigma.

    All of the noise of a point that is alone in its text is its own. Texts are in the order of
    their first points, so that drawn noise does not depend on how clusters are numbered.
    """
    _, first, place, counts = np.unique(
        cluster_N, return_index=True, return_inverse=True, return_counts=True
    )
    in_order = np.argsort(first)
    texts = in_order[counts[in_order] > 1]
    # Of a text its number among those with others, of one that is alone -1.
    number = np.full(counts.size, -1)
    number[texts] = np.arange(texts.size)
    text_N = number[place.reshape(-1)]
    member_M = np.argsort(text_N, kind="stable")[np.count_nonzero(text_N < 0) :]
    first_C = np.concatenate([[0], np.cumsum(counts[texts])[:-1]]).astype(np.int64)[: texts.size]
    variance_BN = (sigma_B[:, None] * unit_N) ** 2
    shared_BN = np.sqrt(SHARED * variance_BN) * (text_N >= 0)
    own_BN = np.sqrt(variance_BN - shared_BN**2 + floor_N**2)
    return Whitening(own_BN, shared_BN, member_M, text_N[member_M], first_C)
