"""Points drawn from a known law, for the tests of the law room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pmlray.law import Law, LawData

RANKS = (1.0, 2.0, 4.0, 8.0, 16.0)
LENGTHS = (1000.0, 2000.0, 4000.0, 8000.0)

PointsOf = Callable[..., LawData]


@pytest.fixture(scope="session")
def paper_csv() -> Path:
    return Path(__file__).parents[2] / "golden" / "paper_fig2a_digitised.csv"


@pytest.fixture(scope="session")
def points_of() -> PointsOf:
    """points_of(law, ranks, lengths, steps, noise_N=0): the law on a grid, one cluster a point."""

    def build(
        law: Law,
        ranks: tuple[float, ...] = RANKS,
        lengths: tuple[float, ...] = LENGTHS,
        steps: tuple[float, ...] = (0.0,),
        base_loss: float = np.nan,
        noise: np.ndarray | float = 0.0,
        cluster: np.ndarray | None = None,
    ) -> LawData:
        r, length, t = (x.ravel() for x in np.meshgrid(ranks, lengths, steps, indexing="ij"))
        delta = law.predict(r, length, t) + noise
        base = np.full(r.size, base_loss)
        ids = np.arange(r.size) if cluster is None else cluster
        return LawData(r, length, t, delta, base, base - delta, ids)

    return build
