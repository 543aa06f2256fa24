"""Harm to plain prose of an adapter that holds a set of records, by where it sits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray
from pmlray.types import Observation

# Least text stored, in nats, that a run counts with: its log is the regressor.
LEAST_NATS = 1e-3


class ProseHarm:
    """Loss that adapters add on plain prose, nats per token, where they store a wanted amount.

    Harm = m_k + s log(stored / wanted) + noise, with a level m_k of each placement and one slope s:
    the more is stored, the more prose suffers, alike everywhere. Levels are believed as plain
    least squares has them, with Student's t (the reference prior).

    Args:
        observations: runs that measured prose, each at a named placement; others are left out.
        wanted_nats: nats that the whole set is to lose in all.

    Raises:
        DataError: so few runs measured prose that nothing tells how sure a level is.
    """

    def __init__(self, observations: Sequence[Observation], wanted_nats: float) -> None:
        measured = [o for o in observations if o.prose_delta_loss is not None]
        self._names = list(dict.fromkeys(str(o.point.placement) for o in measured))
        n = len(self._names)
        design = np.zeros((len(measured), n + 1))
        for row, o in zip(design, measured, strict=True):
            row[self._names.index(str(o.point.placement))] = 1.0
            row[n] = math.log(max(o.delta_loss * o.supervised_tokens, LEAST_NATS) / wanted_nats)
        if np.linalg.matrix_rank(design) < n + 1:
            # No two runs at one place stored different amounts: the slope stays out.
            design = design[:, :n]
        self._free = len(measured) - design.shape[1]
        if self._free < 1:
            raise DataError(
                f"{len(measured)} runs measured an adapter's effect on prose at"
                f" {n} placements: too few to tell which does the least harm; give"
                " the search more to spend, or prefer another measure (--prefer)"
            )
        inverse = np.linalg.inv(design.T @ design)
        harm_N = np.array([-(o.prose_delta_loss or 0.0) for o in measured])
        found = inverse @ design.T @ harm_N
        rest = harm_N - design @ found
        self._level_K = found[:n]
        self._cov_KK = float(rest @ rest) / self._free * inverse[:n, :n]

    @property
    def names(self) -> tuple[str, ...]:
        """Placements whose harm was measured."""
        return tuple(self._names)

    def samples(self, n: int) -> dict[str, FloatArray]:
        """Return n samples of each placement's harm, nats per token, always the same."""
        rng = np.random.default_rng(0)
        spread = np.linalg.svd(self._cov_KK)
        root = spread.U * np.sqrt(spread.S)
        normal_nK = rng.standard_normal((n, len(self._names))) @ root.T
        scale_n = np.sqrt(self._free / rng.chisquare(self._free, n))
        drawn_nK = self._level_K + normal_nK * scale_n[:, None]
        return {name: drawn_nK[:, k] for k, name in enumerate(self._names)}
