"""A rule to learn instead of a text: z = 3x + 5y + 7, with held-out pairs.

Source: the generalisation task of arXiv 2605.30260 (table 3), in our own wording.
"""

from __future__ import annotations

import numpy as np

from pmlray.memory.phonebook import TargetEncoder

# x and y are whole numbers from 0 to SIDE - 1.
SIDE = 100
N_HELDOUT = 1000
MAX_TRAINED = SIDE * SIDE - N_HELDOUT


def rule_pairs(n: int, seed: int, sequence_id: int) -> list[tuple[str, str]]:
    """Return the first n (query, answer) pairs of one draw, 1 to MAX_TRAINED; none is held out.

    seed: of the split into trained and held-out pairs; sequence_id: another order of the trained
    ones, of which a run takes as many as fit its length.
    """
    trained = _split(seed)[N_HELDOUT:]
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, sequence_id)))
    return [_pair(code) for code in order.permutation(trained)[:n].tolist()]


def heldout_pairs(n_tokens: int, seed: int, encode: TargetEncoder) -> list[tuple[str, str]]:
    """Return held-out (query, answer) pairs of one split, as many as reach n_tokens answer
    tokens."""
    pairs = [_pair(code) for code in _split(seed)[:N_HELDOUT].tolist()]
    totals = np.cumsum([len(ids) for ids in encode([answer for _, answer in pairs])])
    return pairs[: int(np.searchsorted(totals, n_tokens)) + 1]


def _split(seed: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    return rng.permutation(SIDE * SIDE)


def _pair(code: int) -> tuple[str, str]:
    x, y = divmod(code, SIDE)
    return f"x = {x}, y = {y}, z =", f" {3 * x + 5 * y + 7}"
