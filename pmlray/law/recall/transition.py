"""Transition from not recalled to recalled: a token's probability against its argmax.

A token that holds more than half of the probability is sure to be decoded, since no other can hold
more; one that does not may be decoded with less (arXiv 2605.30260, its threshold of 0.5).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy

from pmlray.law.data import BoolArray, FloatArray
from pmlray.law.recall.crossing import Crossings, measure_crossings
from pmlray.law.recall.data import TokenRun
from pmlray.law.sizing import Estimate

log = logging.getLogger(__name__)

SURE_P = 0.5
RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class RunTransition:
    """Counts of one run's tokens. `sure`: p > 0.5; `stubborn`: the others.

    `first_stubborn` and `first_wrong` (n,) are places in the record, from 0, of its n records that
    have a wrong token. `loss_sd`: spread of the token losses about their mean, nats.
    """

    run_key: str
    sure: int
    sure_wrong: int
    stubborn: int
    stubborn_right: int
    loss_sd: float
    first_stubborn: FloatArray
    first_wrong: FloatArray

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only; the places are reduced to the number of records with a wrong
        token."""
        counts = ("run_key", "sure", "sure_wrong", "stubborn", "stubborn_right", "loss_sd")
        failed = {"records_failed": self.first_wrong.size}
        return {name: getattr(self, name) for name in counts} | failed


@dataclass(frozen=True, slots=True)
class Transition:
    """Transition of all runs together.

    `onset`: Spearman's correlation of a record's first stubborn token with its first wrong one,
    over the `n_failed` records that have one, with its central 90 % interval by resampling runs;
    None where fewer than three records fail or all at one place. `crossings`: when tokens passed
    0.5, None where no run's tokens were kept while it trained.
    """

    runs: tuple[RunTransition, ...]
    n_failed: int
    onset: Estimate | None
    crossings: Crossings | None

    def _sum(self, name: str) -> int:
        return sum(getattr(run, name) for run in self.runs)

    @property
    def sure_wrong(self) -> int:
        """Tokens with p > 0.5 whose argmax is wrong; above 0 only through an error of the
        measurement."""
        return self._sum("sure_wrong")

    @property
    def sure_recalled(self) -> float | None:
        """Share of tokens with p > 0.5 that are recalled, None without any."""
        return 1.0 - self.sure_wrong / n if (n := self._sum("sure")) else None

    @property
    def stubborn_recalled(self) -> float | None:
        """Share of tokens with p <= 0.5 that are recalled all the same, None without any."""
        return self._sum("stubborn_right") / n if (n := self._sum("stubborn")) else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "sure_tokens": self._sum("sure"),
            "sure_wrong": self.sure_wrong,
            "sure_recalled": self.sure_recalled,
            "stubborn_tokens": self._sum("stubborn"),
            "stubborn_recalled": self.stubborn_recalled,
            "records_failed": self.n_failed,
            "onset_spearman": None if self.onset is None else asdict(self.onset),
            "crossings": self.crossings and self.crossings.to_json(),
            "runs": [run.to_json() for run in self.runs],
        }


def measure_transition(runs: Sequence[TokenRun], rng: np.random.Generator) -> Transition:
    """Count sure and stubborn tokens, and relate the places where records begin to fail.

    A sure token that is wrong is arithmetically impossible: it is counted and logged as an error.
    """
    found = tuple(_run_transition(run) for run in runs)
    failing = [run for run in found if run.first_wrong.size]
    n_failed = sum(r.first_wrong.size for r in failing)
    done = Transition(found, n_failed, _onset(failing, rng), measure_crossings(runs))
    if done.sure_wrong:
        log.error(
            "%d tokens with p > 0.5 count as wrong, which cannot be: p and the argmax do not come"
            " from one pass",
            done.sure_wrong,
        )
    return done


def _run_transition(run: TokenRun) -> RunTransition:
    sure = run.p > SURE_P
    first_wrong = _first(run.wrong, run)
    failed = np.isfinite(first_wrong)
    return RunTransition(
        run_key=run.observation.run_key,
        sure=int(sure.sum()),
        sure_wrong=int((sure & run.wrong).sum()),
        stubborn=int((~sure).sum()),
        stubborn_right=int((~sure & ~run.wrong).sum()),
        loss_sd=float(np.std(np.log(np.maximum(run.p, np.finfo(float).tiny)))),
        first_stubborn=_first(~sure | run.wrong, run)[failed],
        first_wrong=first_wrong[failed],
    )


def _first(marked: BoolArray, run: TokenRun) -> FloatArray:
    """Return the place of each record's first marked token, inf without one."""
    places = np.where(marked, run.position, np.inf)
    return np.minimum.reduceat(places, np.flatnonzero(run.position == 0))


def _onset(runs: Sequence[RunTransition], rng: np.random.Generator) -> Estimate | None:
    def correlation(chosen: Sequence[RunTransition]) -> float:
        stubborn = np.concatenate([run.first_stubborn for run in chosen])
        wrong = np.concatenate([run.first_wrong for run in chosen])
        if wrong.size < 3 or np.ptp(stubborn) == 0 or np.ptp(wrong) == 0:
            return np.nan
        return float(np.corrcoef(scipy.stats.rankdata(stubborn), scipy.stats.rankdata(wrong))[0, 1])

    if not runs or np.isnan(value := correlation(runs)):
        return None
    drawn = [
        correlation([runs[int(i)] for i in rng.integers(0, len(runs), len(runs))])
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(drawn, [0.05, 0.95])
    return Estimate(value, float(low), float(high))
