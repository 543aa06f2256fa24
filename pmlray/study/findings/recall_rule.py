"""What the exact recall of a set of runs counts: the answer, or the answer and then its end."""

from __future__ import annotations

from collections.abc import Iterable

from pmlray.errors import DataError
from pmlray.types import Observation

ANSWER, ANSWER_AND_END = "the answer", "the answer and then its end"


def recall_rule(observations: Iterable[Observation]) -> str:
    """Return what the exact recall of these runs counts, in words.

    Raises:
        DataError: some runs were trained with the end of their answers and some without, so that
            no table or figure could compare them.

    Example:
        >>> recall_rule(store.observations())
        'the answer and then its end'
    """
    with_end = {o.recall.answered is not None for o in observations}
    if len(with_end) > 1:
        raise DataError(
            "some of these runs were trained with the end of their answers and others without, so"
            " that their exact recall does not count the same; keep them in two stores"
        )
    return ANSWER_AND_END if True in with_end else ANSWER


def n_whole(share: float, n: int) -> int:
    """Return how many of n records are right; of a text whose records are not counted (n is 1),
    a share of them is none."""
    return int(share * n + 1e-6)
