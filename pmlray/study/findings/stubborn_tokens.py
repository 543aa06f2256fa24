"""Tokens that fail repeatedly over runs: pathology distinguished from lack of capacity.

A token fails in a run that leaves it at p <= 0.5. If capacity alone decided, a run that fails K of
its L tokens would fail any one of them with probability K / L; a token stands out by failing more
often than that. Runs that differ in their budget alone are one run up to the shorter one's decay,
so only the longest of each such family enters the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import numpy as np
import scipy
from numpy.typing import NDArray

from pmlray.types import Observation

Verdict = Literal["pathology", "hard", "capacity"]

# Recalled share from which capacity hardly limits a run: a failure is then the token's own.
NEARLY_ALL = 0.95
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class TokenTally:
    """Failures of one supervised token, and the number expected from capacity alone.

    `runs` cover it, `failed` of them leave it at p <= 0.5, `wrong` at another argmax. Of the
    `families` (one run each), `families_failed` failed it where `expected` were expected; `p_value`
    is the probability of so many or more, `p_adjusted` after Holm's correction over all tokens.
    `recalling` families recall nearly everything (NEARLY_ALL), `recalling_failed` of these fail it;
    `recalling_p_value` and `recalling_p_adjusted` test those alone.

    Verdict `pathology`: fails significantly, and at least half of the time, where nearly everything
    else is recalled. `hard`: fails significantly more often than the others, but nothing shows that
    more capacity would not cure it. `capacity`: neither.
    """

    sequence_id: int
    position: int
    runs: int
    failed: int
    wrong: int
    families: int
    families_failed: int
    expected: float
    p_value: float
    p_adjusted: float
    recalling: int
    recalling_failed: int
    recalling_p_value: float
    recalling_p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class IdTally:
    """Failures of one token id, over all its `places` (sequence, position) and families.

    `tokens` counts each place in each family, `failed` those at p <= 0.5; `expected`, `p_value` and
    `p_adjusted` as in TokenTally, where a run that fails K of L tokens fails a hypergeometric
    number of the id's.
    """

    token_id: int
    places: int
    tokens: int
    failed: int
    expected: float
    p_value: float
    p_adjusted: float


def failing(observation: Observation) -> NDArray[np.bool_]:
    """Return the supervised tokens that a run leaves at p <= 0.5: bool (supervised tokens,)."""
    return np.asarray(observation.token_p) <= 0.5


def families(observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """Return the run with the most steps of each family, whose runs differ only in their budget."""
    longest: dict[tuple[object, ...], Observation] = {}
    for o in observations:
        key = (o.point.family, o.method, o.sequence_id, o.seed)
        if key not in longest or o.point.train_steps > longest[key].point.train_steps:
            longest[key] = o
    return tuple(longest.values())


def token_tallies(observations: Sequence[Observation]) -> tuple[TokenTally, ...]:
    """Return a tally of every supervised token that any run covers, most suspicious first.

    observations: of one search, whose texts nest: position i of a sequence is the same token at
    every seq_len.
    """
    runs, chosen = _by_sequence(observations), _by_sequence(families(observations))
    found = [
        tally
        for sequence_id in sorted(runs)
        for tally in _tallies_of(sequence_id, runs[sequence_id], chosen[sequence_id])
    ]
    everywhere = holm([t.p_value for t in found])
    recalling = holm([t.recalling_p_value for t in found])
    judged = [
        replace(t, p_adjusted=p, recalling_p_adjusted=q, verdict=_verdict(t, p, q))
        for t, p, q in zip(found, everywhere, recalling, strict=True)
    ]
    ranks = {verdict: i for i, verdict in enumerate(get_args(Verdict))}
    return tuple(sorted(judged, key=lambda t: (ranks[t.verdict], t.p_value, t.recalling_p_value)))


def _by_sequence(observations: Sequence[Observation]) -> dict[int, list[Observation]]:
    found: dict[int, list[Observation]] = {}
    for o in observations:
        found.setdefault(o.sequence_id, []).append(o)
    return found


def _tallies_of(
    sequence_id: int, runs: Sequence[Observation], chosen: Sequence[Observation]
) -> list[TokenTally]:
    length = max(len(o.token_p) for o in runs)
    failed_RL, covers_RL = _laid_out(runs, length)
    failed_FL, covers_FL = _laid_out(chosen, length)
    wrong_L = np.bincount([i for o in runs for i in o.wrong_tokens], minlength=length)
    share_F = failed_FL.sum(axis=1) / covers_FL.sum(axis=1)
    recalls_F = share_F <= 1.0 - NEARLY_ALL
    tallies = []
    for i in range(length):
        covering_F, failed_F = covers_FL[:, i], failed_FL[:, i]
        n_failed, n_recalling_failed = int(failed_F.sum()), int(failed_F[recalls_F].sum())
        due = tuple(share_F[covering_F].tolist())
        due_recalling = tuple(share_F[covering_F & recalls_F].tolist())
        p_value = _tails(due)[n_failed]
        recalling_p_value = _tails(due_recalling)[n_recalling_failed]
        tallies.append(
            TokenTally(
                sequence_id=sequence_id,
                position=i,
                runs=int(covers_RL[:, i].sum()),
                failed=int(failed_RL[:, i].sum()),
                wrong=int(wrong_L[i]),
                families=len(due),
                families_failed=n_failed,
                expected=sum(due),
                p_value=p_value,
                p_adjusted=p_value,
                recalling=len(due_recalling),
                recalling_failed=n_recalling_failed,
                recalling_p_value=recalling_p_value,
                recalling_p_adjusted=recalling_p_value,
                verdict="capacity",
            )
        )
    return tallies


def _laid_out(
    runs: Sequence[Observation], length: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the tokens that each run fails and those it covers, both bool (runs, length)."""
    failed, covers = np.zeros((2, len(runs), length), dtype=bool)
    for row, run in enumerate(runs):
        failed[row, : len(run.token_p)] = failing(run)
        covers[row, : len(run.token_p)] = True
    return failed, covers


@cache
def _tails(chances: tuple[float, ...]) -> tuple[float, ...]:
    """Return P(at least n of the independent events) for each n from 0 up (Poisson-binomial)."""
    pmf = np.ones(1)
    for chance in chances:
        pmf = np.convolve(pmf, (1.0 - chance, chance))
    return tuple(np.minimum(np.cumsum(pmf[::-1])[::-1], 1.0).tolist())


def _verdict(tally: TokenTally, p_adjusted: float, recalling_p_adjusted: float) -> Verdict:
    mostly = 2 * tally.recalling_failed >= tally.recalling
    if recalling_p_adjusted <= LEVEL and mostly:
        return "pathology"
    return "hard" if min(p_adjusted, recalling_p_adjusted) <= LEVEL else "capacity"


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return n p-values with Holm's step-down correction (doi 10.2307/4615733).

    The family-wise error is controlled.
    """
    order = np.argsort(p_values)
    left = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * left), 1.0)
    return tuple(adjusted.tolist())


def id_tallies(
    observations: Sequence[Observation], token_ids: Mapping[int, Sequence[int]]
) -> tuple[IdTally, ...]:
    """Return a tally of every token id that stands in more than one place, most suspicious first.

    token_ids: by sequence_id, the supervised ids of its longest text.
    """
    places: dict[int, int] = {}
    for ids in token_ids.values():
        for token_id in ids:
            places[token_id] = places.get(token_id, 0) + 1
    apart = [(o.sequence_id, failing(o)) for o in families(observations)]
    found = []
    for token_id in sorted(i for i, n in places.items() if n > 1):
        n_tokens, n_failed, expected = 0, 0, 0.0
        pmf = np.ones(1)
        for sequence_id, failed in apart:
            ids = np.asarray(token_ids.get(sequence_id, ())[: failed.size])
            mine = np.flatnonzero(ids == token_id)
            if not mine.size:
                continue
            n_tokens += mine.size
            n_failed += int(failed[mine].sum())
            expected += float(mine.size * failed.mean())
            draws = np.arange(mine.size + 1)
            mine_pmf = scipy.stats.hypergeom.pmf(draws, failed.size, failed.sum(), mine.size)
            pmf = np.convolve(pmf, np.asarray(mine_pmf))
        p_value = min(1.0, float(pmf[n_failed:].sum()))
        found.append(
            IdTally(token_id, places[token_id], n_tokens, n_failed, expected, p_value, p_value)
        )
    adjusted = holm([tally.p_value for tally in found])
    found = [replace(tally, p_adjusted=p) for tally, p in zip(found, adjusted, strict=True)]
    return tuple(sorted(found, key=lambda t: (t.p_adjusted, t.expected - t.failed)))
