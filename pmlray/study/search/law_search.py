"""A search as a state machine: packs go out, results come in, the law is refitted in between.

It knows no framework. The caller (Ray Tune, or a loop in this process) asks for the next pack and
returns its result; everything finished is in the store, so that a new LawSearch on the same store
continues where the old one stopped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import CostModel
from pmlray.design.packing import LEAST_RUNS
from pmlray.law import LawSummary
from pmlray.live_packs import Calibration
from pmlray.ports import ObservationStore, PointSource, Tracker
from pmlray.study.budget.accounts import Accounts
from pmlray.study.budget.pack_queue import PackQueue
from pmlray.study.budget.packs import Draft, of_one_kind, packs_of, room_for, trunk_families
from pmlray.study.budget.run_statistics import Measured
from pmlray.study.findings.fitted_runs import REFIT_GROWTH, fit_observations, refit_is_due
from pmlray.study.search.memft_schedule import law_at_points, memft_runs
from pmlray.study.search.plan import first_pack
from pmlray.study.search.progress import Progress, law_metrics, progress_metrics
from pmlray.study.search.remaining_cost import open_seconds
from pmlray.types import Pack, PackResult, Phase, PlannedRun

log = logging.getLogger(__name__)


class LawSearch:
    """Source of packs for the law, then for MemFT, until the target or the budget is reached.

    cost: the cost model before anything was measured. max_pack_failures: packs without a single
    observation, one after another, after which `next_pack` raises RunError.
    """

    def __init__(
        self,
        search: PreparedSearch,
        store: ObservationStore,
        points: PointSource,
        tracker: Tracker,
        cost: CostModel,
        max_pack_failures: int,
        announce: Callable[[Progress], None],
    ) -> None:
        self._search, self._points = search, points
        self._tracker, self._announce = tracker, announce
        self._n_devices = 1
        # Planned packs that are not handed out, each with whether it is of the initial design.
        self._ready: deque[tuple[Pack, bool]] = deque()
        self._starting = False
        observations = store.observations()
        self._measured = Measured(cost, observations, store.times())
        self._failures = failures = list(store.failures())
        self._accounts = Accounts(search, cost, self._measured, failures)
        self._failed_keys = {f.run_key for f in failures if not f.infrastructure}
        self._queue = PackQueue(store, observations, failures, max_pack_failures)
        self._law_over = any(o.phase == "memft" for o in observations)
        self._n_fitted = 0
        self.law: LawSummary | None = None
        self._refit(tell=False)
        tracker.observe(observations)

    def spread_over(self, n_devices: int) -> None:
        """Plan for so many packs that train at once."""
        self._n_devices = n_devices

    def to_calibrate(self) -> Pack | None:
        """Return a pack of the likely initial design to take a few steps of; None once costs are
        known."""
        if (
            self._measured.observations
            or self._accounts.calibration is not None
            or self._queue.cut_off
        ):
            return None
        cost = self._measured.cost()
        runs = of_one_kind(first_pack(self._search, cost), cost)[0]
        room = room_for(runs, self._measured.device(), cost)
        return Pack(self._queue.next_round, runs, room, calibrates=True)

    def calibrated(self, found: Calibration) -> None:
        """Plan by the cost of a few steps; DesignError where the budget is smaller than one run."""
        cost = self._accounts.calibrated(found)
        self._points.calibrate(cost.seconds_per_token, found.spent_gpu_seconds)

    def is_over(self) -> bool:
        """Return whether nothing is left to do, as far as can be told without choosing a point."""
        return self._law_over and not self._queue.cut_off and not self._memft_packs()

    def next_pack(self) -> Pack | None:
        """Return the next pack; RunError when packs keep failing.

        None when there is nothing to do before a pack that is out comes back, and when none is out:
        the search is over.
        """
        self._queue.check()
        if self._queue.cut_off:
            return self._hand_out(self._queue.cut_off.pop(0), initial=False)
        if not self._ready:
            self._starting = False
            packs = self._law_packs()
            # MemFT's points follow from the law, so they wait until no run of the law is pending.
            if not packs and not self._n_law_pending():
                packs = self._memft_packs()
            for runs, room in packs:
                self._ready.append((self._queue.plan(runs, room), self._starting))
        if not self._ready:
            return None
        pack, initial = self._ready.popleft()
        self._tell()
        return self._hand_out(pack, initial=initial)

    def _hand_out(self, pack: Pack, *, initial: bool) -> Pack:
        # A pack's limit leaves enough for the packs planned after it.
        waiting = [run for ready, _ in self._ready for run in ready.runs]
        waiting += [run for cut_off in self._queue.cut_off for run in cut_off.runs]
        return self._accounts.hand_out(pack, waiting, self._n_devices, initial=initial)

    def absorb(self, result: PackResult) -> None:
        """Take in the result of a pack: update costs, refit the law, inform the tracker."""
        self._queue.take_back(result)
        self._accounts.back(result.pack)
        self._measured.add(result.observations, result.times)
        # Some failures of a pack that was cut off are known already.
        known = {(f.run_key, f.round) for f in self._failures}
        failed = [f for f in result.failed if (f.run_key, f.round) not in known]
        for observation in result.observations:
            if observation.phase == "law":
                self._points.tell(observation)
        for failure in failed:
            self._failures.append(failure)
            self._failed_keys.add(failure.run_key)
            self._points.fail(failure.run_key, self._accounts.charge(failure))
        self._tracker.observe(result.observations)
        if self._refit_is_due():
            self._refit()
        self._tell()

    def _tell(self) -> None:
        now = self.progress()
        self._announce(now)
        self._tracker.progress(progress_metrics(now), now.gpu_seconds_spent)

    def progress(self) -> Progress:
        """Return the state of the search now."""
        spec, budget = self._search.spec, self._search.spec.budget
        phase: Phase = "memft" if self._law_over else "law"
        spent = self._measured.spent[phase]
        total = budget.memft_seconds if self._law_over else budget.law_seconds
        law = None if self.law is None else law_at_points(self.law, self._measured.plain)
        known, cost = tuple(self._measured.observations.values()), self._measured.cost()
        return Progress(
            phase=phase,
            n_done=len(known),
            n_pending=len(self._queue.pending),
            n_failed=sum(not f.left_out for f in self._failures),
            gpu_seconds_spent=self._measured.gpu_seconds
            + sum(f.gpu_seconds for f in self._failures if f.infrastructure),
            gpu_seconds_left=max(0.0, total - spent),
            law=self.law,
            gpu_seconds_open=open_seconds(spec, phase, known, self._failures, law, cost),
            running=tuple(self._queue.pending.values()),
            ended_before=self._queue.ended_before,
        )

    def _law_packs(self) -> Sequence[Draft]:
        if self._law_over:
            return ()
        if self._known_well_enough():
            log.info("the law is known well enough at every target")
            self._law_over = True
            return ()
        design, measured = self._search.spec.design, self._measured
        n_law = len(measured.plain)
        n_pending = self._n_law_pending()
        missing = design.n_initial - n_law - n_pending
        if n_pending and missing <= 0 and n_law < design.n_initial and not self._may_choose(n_law):
            return ()
        cost, device = measured.cost(), measured.device()
        runs: tuple[PlannedRun, ...] = ()
        if missing > 0 and (left := self._accounts.left_to_start(self._queue.pending.values())) > 0:
            self._starting = True
            runs = self._points.ask(missing, 1, left)
            packs = packs_of(trunk_families(runs), self._n_devices, device, cost)
        elif missing <= 0 or not n_pending:
            n = self._n_devices
            runs = (
                self._points.ask(
                    measured.runs_to_ask(n), n, self._accounts.of_round, at_least=LEAST_RUNS
                )
                if design.pack_size is None
                else self._points.ask(design.pack_size)
            )
            kinds = of_one_kind(runs, cost)
            packs = tuple((alike, room_for(alike, device, cost)) for alike in kinds)
        else:
            packs = ()
        # Packs in flight reserve their limits and may cost less, so the law is not over before.
        self._law_over = not runs and not n_pending
        return packs

    def _may_choose(self, n_law: int) -> bool:
        """Return whether half of the initial design is enough to choose by, so that idle devices do
        not wait for its longest run."""
        several = self._n_devices > 1 and 2 * n_law >= self._search.spec.design.n_initial
        return several and self.law is not None

    def _n_law_pending(self) -> int:
        return sum(run.phase == "law" for run in self._queue.pending.values())

    def _known_well_enough(self) -> bool:
        wanted = self._search.spec.stop.relative_interval
        if wanted is None or self.law is None:
            return False
        reached = self.law.known_interval
        spec, plain = self._search.spec, self._measured.plain
        seen = {o.point.placement for o in plain}
        enough = len(plain) >= spec.design.n_initial and seen.issuperset(
            point.placement for point in spec.target_points()
        )
        return enough and reached is not None and reached <= wanted

    def _memft_packs(self) -> Sequence[Draft]:
        """Return paired runs for one pack a device; runs that failed are not tried again."""
        self._refit()
        if self.law is None:
            return ()
        # By the law's own runs alone: with MemFT's, points would move as they are measured.
        plain, cost = self._measured.plain, self._measured.cost()
        # Runs of the law that were not stopped early serve as the plain side of a pair.
        reused = frozenset(
            self._search.plan_run(o.point, o.method, o.sequence_id, o.seed, "memft").run_key
            for o in plain
            if not o.stopped_early
        )
        groups = memft_runs(
            self._search,
            law_at_points(self.law, plain),
            median(o.base_loss for o in plain),
            cost,
            frozenset(self._measured.observations)
            | reused
            | self._failed_keys
            | frozenset(self._queue.pending),
        )
        design = self._search.spec.design
        device = self._measured.device()
        limit = max(design.n_initial, design.pack_size or self._measured.runs_to_ask(1))
        packs = packs_of(groups, self._n_devices, device, cost, limit)
        return packs[: self._n_devices]

    def _refit_is_due(self) -> bool:
        """Return whether the law is outdated, or decides whether the search continues."""
        decides = self._search.spec.stop.relative_interval is not None
        return refit_is_due(
            len(self._measured.plain), self._n_fitted, 1.0 if decides else REFIT_GROWTH
        )

    def _refit(self, tell: bool = True) -> None:
        """Fit the law to all runs where there are new ones; `tell`: send it to the tracker."""
        known = sorted(self._measured.plain, key=lambda o: (o.round, o.place, o.run_key))
        if len(known) == self._n_fitted:
            return
        self._n_fitted = len(known)
        self.law = fit_observations(self._search.spec, known)
        if self.law is not None and tell:
            self._tracker.law(law_metrics(self.law), self.progress().gpu_seconds_spent)
