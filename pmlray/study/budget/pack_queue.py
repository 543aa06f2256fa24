"""The queue of a study's packs: cut off by a fault, planned, and in flight.

A search and a comparison share it, so that both continue and fail in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pmlray.errors import ModelError, RunError
from pmlray.ports import ObservationStore
from pmlray.types import FailedRun, Observation, Pack, PackResult, PlannedRun, Room


class PackQueue:
    """Packs of a study by their state, rebuilt from its store.

    Args:
        store: keeps each plan before its pack is handed out.
        observations, failures: all that the store holds.
        max_failures: packs in a row without a single observation, after which `check` raises.

    Attributes:
        cut_off: packs to continue, each as it was planned; they go before new ones.
        ended_before: gpu_seconds of runs that had ended when their pack was cut off, by pack_id
            and run_key.
        pending: runs that are planned and not back, by run_key.
    """

    def __init__(
        self,
        store: ObservationStore,
        observations: Sequence[Observation],
        failures: Sequence[FailedRun],
        max_failures: int,
    ) -> None:
        self._store, self._max_failures, self._n_failed = store, max_failures, 0
        self._refused: str | None = None
        self.cut_off = list(store.unfinished())
        self.ended_before = _ended_before(self.cut_off, observations, failures)
        self.pending = _open_runs(self.cut_off, self.ended_before)
        rounds = [o.round for o in observations] + [f.round for f in failures]
        rounds += [pack.round for pack in self.cut_off]
        self.next_round = 1 + max(rounds, default=-1)

    def check(self) -> None:
        """Raise RunError when too many packs failed one after another, ModelError when a worker
        refused the base."""
        if self._refused is not None:
            raise ModelError(self._refused)
        if self._n_failed >= self._max_failures:
            raise RunError(
                f"{self._n_failed} packs failed one after another; the store's failures folder says"
                " why. What is finished is kept: mend the cause and give the same command again"
            )

    def plan(self, runs: Sequence[PlannedRun], room: Room | None) -> Pack:
        """Make the pack of the next round, and store its plan before it is trained."""
        pack = Pack(self.next_round, tuple(runs), room)
        self._store.put_plan(pack)
        self.next_round += 1
        self.pending |= {run.run_key: run for run in pack.runs}
        return pack

    def take_back(self, result: PackResult) -> None:
        """Record that a pack is back, and whether it failed; left-out runs do not count."""
        for run in result.pack.runs:
            self.pending.pop(run.run_key, None)
        self._store.put_times(result.times)
        self._refused = next((f.reason for f in result.failed if f.bad_base), self._refused)
        broken = any(not failure.left_out for failure in result.failed)
        self._n_failed = self._n_failed + 1 if broken and not result.observations else 0


def _ended_before(
    packs: Sequence[Pack], observations: Iterable[Observation], failures: Iterable[FailedRun]
) -> dict[str, dict[str, float]]:
    """Return gpu_seconds of the ended runs of packs; a run that a machine failed has not ended."""
    ended = {(f.run_key, f.round): f.gpu_seconds for f in failures if not f.infrastructure}
    ended |= {(o.run_key, o.round): o.gpu_seconds for o in observations}
    return {
        pack.pack_id: {
            run.run_key: ended[run.run_key, pack.round]
            for run in pack.runs
            if (run.run_key, pack.round) in ended
        }
        for pack in packs
    }


def _open_runs(
    packs: Iterable[Pack], ended: Mapping[str, Mapping[str, float]]
) -> dict[str, PlannedRun]:
    """Return the runs of packs that have not ended, by run_key."""
    return {r.run_key: r for p in packs for r in p.runs if r.run_key not in ended[p.pack_id]}
