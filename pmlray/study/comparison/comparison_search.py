"""A comparison as a state machine: learning rates are tuned for each method, then methods meet.

Like a search it knows no framework: the caller asks for the next pack and returns its result, and
everything finished is in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import PreparedSearch
from pmlray.live_packs import Calibration
from pmlray.ports import ObservationStore, Tracker
from pmlray.study.budget.pack_queue import PackQueue
from pmlray.study.budget.packs import Draft, known_device, packs_of
from pmlray.study.comparison.progress import comparison_progress
from pmlray.study.comparison.tuning import MethodCell, tuned_rates, wider_rates
from pmlray.study.search.plan import first_cost
from pmlray.study.search.progress import Progress
from pmlray.types import DesignPoint, Pack, PackResult, PlannedRun

# Runs of the first pack, before the device's memory is known.
FIRST_PACK_RUNS = 20


class ComparisonSearch:
    """Source of the packs of a comparison; `search` is that of `spec.search_spec()`.

    max_pack_failures: packs without a single observation, one after another, after which
    `next_pack` raises RunError.
    """

    def __init__(
        self,
        spec: CompareSpec,
        search: PreparedSearch,
        store: ObservationStore,
        tracker: Tracker,
        max_pack_failures: int,
        announce: Callable[[Progress], None],
    ) -> None:
        self._spec, self._search = spec, search
        self._tracker, self._announce = tracker, announce
        self._observations = {o.run_key: o for o in store.observations()}
        self._failures = failures = list(store.failures())
        self._failed_keys = {f.run_key for f in failures if not f.infrastructure}
        known = tuple(self._observations.values())
        self._queue = PackQueue(store, known, failures, max_pack_failures)
        self._times = list(store.times())
        self._n_devices = 1
        self._out: dict[str, Pack] = {}
        tracker.observe(self._observations.values())

    def spread_over(self, n_devices: int) -> None:
        """Plan for so many packs that train at once."""
        self._n_devices = n_devices

    def to_calibrate(self) -> Pack | None:
        """Return None: the runs of a comparison do not depend on their cost."""
        return None

    def calibrated(self, found: Calibration) -> None:
        """Ignore the cost of a few steps."""

    def is_over(self) -> bool:
        """Return whether every run is measured, or has failed."""
        every = (self.tuning_runs, self.compared_runs)
        # The compared rates are known once all are tuned.
        return not self._queue.cut_off and not any(self._missing(runs()) for runs in every)

    def next_pack(self) -> Pack | None:
        """Return the next pack, or None when all is measured; RunError when packs keep failing."""
        self._queue.check()
        pack = self._queue.cut_off.pop(0) if self._queue.cut_off else self._new_pack()
        if pack is not None:
            self._out[pack.pack_id] = pack
            self._announce(self.progress())
        return pack

    def _new_pack(self) -> Pack | None:
        tuning = self.tuning_runs()
        runs = self._missing(tuning)
        if not runs and not any(run.run_key in self._queue.pending for run in tuning):
            runs = self._missing(self.compared_runs())
        if not runs:
            return None
        size = self._spec.pack_size
        chosen, room = (tuple(runs[:size]), None) if size else self._whole_texts(runs)
        return self._queue.plan(chosen, room)

    def absorb(self, result: PackResult) -> None:
        """Take in the result of a pack."""
        self._out.pop(result.pack.pack_id, None)
        self._queue.take_back(result)
        self._times.append(result.times)
        self._observations |= {o.run_key: o for o in result.observations}
        self._failed_keys |= {f.run_key for f in result.failed}
        self._failures += result.failed
        self._tracker.observe(result.observations)
        self._announce(self.progress())

    def progress(self) -> Progress:
        """Return the state of the comparison."""
        found = comparison_progress(
            self._spec,
            tuple(self._observations.values()),
            self._failures,
            len(self._failed_keys),
            tuple(self._queue.pending.values()),
        )
        return replace(found, ended_before=self._queue.ended_before)

    def tuning_runs(self) -> tuple[PlannedRun, ...]:
        """Return every method at every rate on the tuning texts; none where there is one rate.

        While a point's best rates are at an end of those tried, it has wider ones, once these are
        known. Runs of one budget stand together: in one pack, budgets would share steps and their
        cost.
        """
        if len(self._spec.tuning.learning_rates) == 1:
            return ()
        return tuple(run for point in self._points() for run in self._tuning_at(point))

    def _tuning_at(self, point: DesignPoint) -> tuple[PlannedRun, ...]:
        tuning, methods = self._spec.tuning, self._spec.all_methods()
        rates = tuning.learning_rates
        while True:
            every = {(point, method): rates for method in methods}
            runs = self._runs(every, tuning.sequences, tuning.seeds)
            ended = self._observations.keys() | self._failed_keys
            if not all(run.run_key in ended for run in runs):
                return runs
            known = [o for o in self._observations.values() if o.learning_rate in rates]
            best = tuned_rates(self._spec, known)
            wider = wider_rates(self._spec, rates, [best[point, method] for method in methods])
            if not wider:
                return runs
            rates = (*rates, *wider)

    def compared_runs(self) -> tuple[PlannedRun, ...]:
        """Return every method at every point, text and seed, at its best rate."""
        rates = tuned_rates(self._spec, tuple(self._observations.values()))
        methods = self._spec.all_methods()
        best = {(p, method): (rates[p, method],) for p in self._points() for method in methods}
        return self._runs(best, self._spec.sequences, self._spec.seeds)

    def _points(self) -> list[DesignPoint]:
        return sorted(self._spec.design_points(), key=lambda p: p.train_steps)

    def _runs(
        self,
        rates: Mapping[MethodCell, Sequence[float]],
        sequences: Sequence[int],
        seeds: Sequence[int],
    ) -> tuple[PlannedRun, ...]:
        """Order runs so that all methods of one text and seed share a pack: other load on the
        device then slows them alike."""
        return tuple(
            self._search.plan_run(point, method, sequence_id, seed, "memft", rate)
            for point in dict.fromkeys(point for point, _ in rates)
            for sequence_id in sequences
            for seed in seeds
            for method in self._spec.all_methods()
            for rate in rates[point, method]
        )

    def _whole_texts(self, runs: Sequence[PlannedRun]) -> Draft:
        """Return the next pack's runs: whole texts, as much of what is left as falls to a device
        without a pack."""
        texts: dict[tuple[DesignPoint, int, int], list[PlannedRun]] = {}
        for run in runs:
            texts.setdefault((run.point, run.sequence_id, run.seed), []).append(run)
        cost = first_cost(self._search, gpu=False)
        device = known_device(self._observations.values(), self._times, cost)
        most = FIRST_PACK_RUNS if device is None else None
        out = [pack.runs for pack in self._out.values()]
        return packs_of(list(texts.values()), self._n_devices, device, cost, most, out)[0]

    def _missing(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Return the missing runs of the first train_steps that has any."""
        done = self._observations.keys() | self._failed_keys | self._queue.pending.keys()
        left = [run for run in runs if run.run_key not in done]
        return [run for run in left if run.point.train_steps == left[0].point.train_steps]
