"""One long sequence of token ids to recall after a fixed prompt, with a share of random tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmlray.errors import DataError
from pmlray.memory.records import check_seq_len

RANDOM_RATIOS = (0, 20, 40, 60, 80, 100)


def replaced_positions(seq_len: int, random_ratio: int) -> NDArray[np.bool_]:
    """Return the positions of seq_len that hold a random token: bool (seq_len,), evenly spaced.

    random_ratio: percent; 20 gives positions 2, 7, 12, ... as in arXiv 2605.30260. Whether a
    position is replaced does not depend on seq_len.
    """
    # The running count round(i * ratio / 100), ties up, in exact integers: it steps by one at each
    # replaced position.
    count = (2 * random_ratio * np.arange(seq_len + 1) + 100) // 200
    return np.diff(count) > 0


def long_context_ids(
    seq_len: int,
    *,
    clean_ids: NDArray[np.int64],
    random_ratio: int,
    data_seed: int,
    sequence_id: int,
    text_ids: Sequence[int] | None = None,
    text_start: int | None = None,
) -> tuple[int, ...]:
    """Return the target ids of one long-context sequence.

    seq_len: target tokens. Call it once with the longest length of a search and cut prefixes: the
    random tokens do not depend on seq_len, but the base text is dealt out in stretches of seq_len.
    clean_ids: (V,) ids to draw random tokens from; random_ratio: percent, one of RANDOM_RATIOS;
    data_seed, sequence_id: seed the draws; text_ids: the tokenised base text, of which sequence i
    takes seq_len tokens from i * seq_len on, or from text_start on where that is given; not needed
    at random_ratio 100. One random token is drawn for every position, so ratios of one sequence
    share their random tokens.
    DataError: an unknown random_ratio, no base text where one is needed, or one too short.
    Source: the Long-Context task of arXiv 2605.30260; ids are kept as drawn, never re-tokenised.
    """
    check_seq_len(seq_len)
    if random_ratio not in RANDOM_RATIOS:
        raise DataError(f"random_ratio is {random_ratio}; it must be one of {RANDOM_RATIOS}")
    rng = np.random.default_rng(np.random.SeedSequence(data_seed, spawn_key=(sequence_id,)))
    random_ids = clean_ids[rng.integers(len(clean_ids), size=seq_len)]
    if random_ratio == 100:
        return tuple(random_ids.tolist())
    if text_ids is None:
        raise DataError(
            f"random_ratio {random_ratio} keeps part of a base text and none was given; give a "
            "text or use random_ratio 100"
        )
    start = sequence_id * seq_len if text_start is None else text_start
    end = start + seq_len
    if len(text_ids) < end:
        raise DataError(
            f"the base text holds {len(text_ids)} tokens; sequence_id {sequence_id} of seq_len "
            f"{seq_len} needs {end}: use a longer text, fewer sequences, a shorter seq_len or "
            "random_ratio 100"
        )
    base_ids = np.asarray(text_ids[start:end], dtype=np.int64)
    mixed = np.where(replaced_positions(seq_len, random_ratio), random_ids, base_ids)
    return tuple(mixed.tolist())
