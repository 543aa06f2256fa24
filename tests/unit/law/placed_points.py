"""Points of several placements drawn from a law whose worths are known, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pmlray.law import CeilingLaw, LawData, Placement, Site

TRUE = CeilingLaw(300.0, 0.6, 0.8, 0.5, 6.0, 12.0)
BASE, N_LAYERS = 12.0, 30
# Parameters of a LoRA adapter of rank 1 at the modules of one kind in a layer, by kind.
PER_LAYER = {"attention": 2304.0, "mlp_in": 4224.0, "mlp_out": 2112.0}


def placed(name: str, kinds: Iterable[str], layers: Iterable[int]) -> Placement:
    """A placement at all modules of some kinds in some of 30 layers."""
    return Placement(
        name,
        tuple(
            Site(kind, layer / (N_LAYERS - 1), PER_LAYER[kind])  # type: ignore[arg-type]
            for kind in kinds
            for layer in layers
        ),
    )


BLOCK = placed("block", ("mlp_in", "mlp_out"), (20,))
DOWN = placed("down", ("mlp_out",), (20,))
DOWN_EARLY = placed("early down", ("mlp_out",), (5,))
ATTENTION = placed("attention", ("attention",), (20,))
LINEAR = placed("linear", ("attention", "mlp_in", "mlp_out"), (20,))


def true_rank(placement: Placement, worth: float, rank: np.ndarray | float) -> np.ndarray:
    """Ranks of BLOCK with as many parameters, times what each is worth."""
    n_params = sum(site.params_per_rank for site in placement.sites)
    return np.asarray(rank) * n_params / 6336.0 * worth


def run_noise(delta: np.ndarray, sigma: float) -> np.ndarray:
    """Standard deviation of a run: a share of what is memorised, less as it saturates, and 1 % of
    the base loss."""
    left = (1.0 - np.clip(delta / BASE, 0.0, 1.0) ** 6) ** (7 / 6)
    return np.hypot(sigma * np.maximum(delta - TRUE.offset, 0.6) * left, 0.01 * BASE)


def placed_data(
    worths: Mapping[Placement, float],
    seed: int,
    *,
    sigma: float = 0.08,
    ranks: tuple[int, ...] = (2, 8),
    lengths: tuple[int, ...] = (256, 1024),
    n_texts: int = 2,
) -> LawData:
    """Runs of each placement, the first the reference, at all ranks, lengths and texts."""
    rng, places = np.random.default_rng(seed), tuple(worths)
    cells = [
        (place, r, n, text)
        for place in range(len(places))
        for r in ranks
        for n in lengths
        for text in range(n_texts)
    ]
    place, rank, length, text = np.array(cells).T
    at = [true_rank(places[k], worths[places[k]], r) for k, r in zip(place, rank, strict=True)]
    delta = TRUE.predict(np.array(at), length.astype(float), 200.0)
    of_text = np.sqrt(0.2) * rng.standard_normal(n_texts)[text]
    own = np.sqrt(0.8) * rng.standard_normal(len(cells))
    delta = np.clip(delta + run_noise(delta, sigma) * (of_text + own), 0.05, BASE - 0.01)
    base = np.full(len(cells), BASE)
    return LawData(
        rank.astype(float),
        length.astype(float),
        np.full(len(cells), 200.0),
        delta,
        base,
        base - delta,
        text,
        place,
        places,
    )
