"""Progress of a comparison, from its spec and its store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pmlray.config.compare_spec import CompareSpec
from pmlray.ports import ObservationStore
from pmlray.study.comparison.results import MethodResult, compared_cells, method_results
from pmlray.study.comparison.tuning import tuning_runs
from pmlray.study.search.progress import Progress
from pmlray.types import FailedRun, Observation, PlannedRun


def comparison_progress(
    spec: CompareSpec,
    observations: Sequence[Observation],
    failures: Iterable[FailedRun],
    n_failed: int,
    running: Sequence[PlannedRun],
) -> Progress:
    """Return the progress; the remaining cost is estimated by the mean cost of a run so far.

    Runs of earlier specs in the same store count as spent, but not as done. failures: all failed
    attempts; n_failed: the runs that are not tried again.
    """
    runs = compared_cells(spec, observations).values()
    tried = tuning_runs(spec, observations).values() if spec.n_tuning_runs else ()
    n_tried = sum(map(len, tried))
    n_done = sum(map(len, runs)) + n_tried
    spent = sum(o.gpu_seconds for o in observations)
    # Rates beyond the file's are known once those of the file are tried.
    n_trying = sum(run.sequence_id in spec.tuning.sequences for run in running)
    n_all = max(spec.n_runs, n_tried + n_trying + spec.n_compared_runs)
    n_left = max(0, n_all - n_done - n_failed)
    return Progress(
        phase="memft",
        n_done=n_done,
        n_pending=len(running),
        n_failed=n_failed,
        gpu_seconds_spent=spent + sum(f.gpu_seconds for f in failures),
        gpu_seconds_left=n_left * spent / len(observations) if observations else math.inf,
        law=None,
        running=tuple(running),
        n_all=n_all,
    )


@dataclass(frozen=True)
class FollowedComparison:
    """Read-only view of a comparison through its store."""

    spec: CompareSpec
    store: ObservationStore

    def look(self) -> tuple[Progress, tuple[MethodResult, ...]]:
        """Return the current progress, and the methods' results so far."""
        observations, failures = self.store.observations(), self.store.failures()
        # Runs that failed because of a machine are tried again.
        failed = {f.run_key for f in failures if not f.infrastructure}
        packs = self.store.unfinished()
        ended = failed | {o.run_key for o in observations}
        running = [r for pack in packs for r in pack.runs if r.run_key not in ended]
        progress = comparison_progress(self.spec, observations, failures, len(failed), running)
        return progress, method_results(self.spec, observations)
