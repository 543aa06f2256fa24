"""Read-only view of a search through its store."""

from __future__ import annotations

from dataclasses import dataclass

from pmlray.config.search_spec import SearchSpec
from pmlray.law import LawSummary
from pmlray.ports import ObservationStore
from pmlray.study.budget.allowance import spent_seconds
from pmlray.study.findings.fitted_runs import REFIT_GROWTH, fit_observations, refit_is_due
from pmlray.study.search.memft_schedule import law_at_points
from pmlray.study.search.progress import Progress
from pmlray.study.search.remaining_cost import measured_cost, open_seconds
from pmlray.types import Phase


@dataclass
class FollowedSearch:
    """Repeated reader of a store; the law is refitted once there are enough new runs."""

    spec: SearchSpec
    store: ObservationStore
    _law: LawSummary | None = None
    _n_fitted: int = 0
    _memft: bool = False

    def look(self, final: bool = False) -> Progress:
        """Return the current progress; `final`: the search has ended, so all runs are fitted."""
        observations, failures = self.store.observations(), self.store.failures()
        ended = {o.run_key for o in observations} | {f.run_key for f in failures}
        packs = self.store.unfinished()
        running = tuple(r for pack in packs for r in pack.runs if r.run_key not in ended)
        of_law = [o for o in observations if o.phase == "law"]
        # Kept between reads: after a first MemFT pack that failed as a whole, no MemFT run is
        # measured or running.
        self._memft |= len(of_law) < len(observations) or any(r.phase == "memft" for r in running)
        memft = self._memft
        # As in the search itself, which fits the law to all runs before it chooses MemFT's points.
        growth = 1.0 if final or memft else REFIT_GROWTH
        if refit_is_due(len(of_law), self._n_fitted, growth):
            self._law, self._n_fitted = fit_observations(self.spec, of_law), len(of_law)
        phase: Phase = "memft" if memft else "law"
        budget = self.spec.budget
        total = budget.memft_seconds if memft else budget.law_seconds
        spent = spent_seconds(observations, failures, self.store.calibration())
        lost = sum(f.gpu_seconds for f in failures if f.infrastructure)
        cost = measured_cost(self.spec, observations)
        law = None if self._law is None else law_at_points(self._law, of_law)
        return Progress(
            phase=phase,
            n_done=len(observations),
            n_pending=len(running),
            n_failed=sum(not f.left_out for f in failures),
            gpu_seconds_spent=sum(spent.values()) + lost,
            gpu_seconds_left=max(0.0, total - spent[phase]),
            law=self._law,
            gpu_seconds_open=open_seconds(self.spec, phase, observations, failures, law, cost),
            running=running,
        )
