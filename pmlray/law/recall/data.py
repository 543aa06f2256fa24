"""Runs with the outcome of every token, to which the law of recall is fitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import BoolArray, FloatArray, IntArray
from pmlray.types import Observation


@dataclass(frozen=True, slots=True)
class TokenRun:
    """One run token by token; the arrays have shape (l,), records one after the other.

    `p` of each supervised token at the end, `wrong` where its argmax is wrong, `record` which of
    the `n_records` it belongs to and `position` its place there, from 0. `observation` is the run.
    """

    observation: Observation
    n_records: int
    p: FloatArray
    wrong: BoolArray
    record: IntArray
    position: IntArray


def token_runs(observations: Iterable[Observation]) -> tuple[TokenRun, ...]:
    """Return the SFT runs of the law's phase whose tokens and records are known.

    Observations hold the number of a run's records and not their lengths, so a run's records are
    taken as equally long. FitError, saying why, when there are none.
    """
    plain = [o for o in observations if o.phase == "law" and o.method == "sft"]
    with_tokens = [o for o in plain if o.token_p]
    runs = tuple(_token_run(o, n) for o in with_tokens if (n := _n_records(o)) is not None)
    if runs:
        return runs
    if with_tokens:
        raise FitError(
            "how many records a run held is not recorded in these observations, which an older"
            " version measured: measure again to fit recall"
        )
    if plain:
        raise FitError(
            "these observations hold no token's probability (a table keeps shares alone): fit"
            " recall to the store of a search that was measured, not replayed"
        )
    raise FitError("no SFT run is measured for the law yet: nothing to fit recall to")


def _n_records(o: Observation) -> int | None:
    recorded = o.provenance.get("n_records")
    if recorded is None:
        return 1 if o.task == "long_context" else None
    return int(recorded)


def _token_run(o: Observation, n_records: int) -> TokenRun:
    token = np.arange(len(o.token_p))
    starts = np.round(np.arange(n_records) * token.size / n_records).astype(np.int64)
    record = np.searchsorted(starts, token, side="right") - 1
    wrong = np.zeros(token.size, dtype=bool)
    wrong[list(o.wrong_tokens)] = True
    return TokenRun(o, n_records, np.array(o.token_p), wrong, record, token - starts[record])
