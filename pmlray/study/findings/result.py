"""Result of a search, rebuilt from its store alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pmlray.config.search_spec import SearchSpec
from pmlray.errors import DataError, FitError
from pmlray.law import (
    LawSummary,
    Placement,
    PlacementChoice,
    RecallForecast,
    RecallLaw,
    Sizing,
    measured_choices,
)
from pmlray.law.validation.convergence import Certificate
from pmlray.live_packs import Calibration
from pmlray.notebook_html import facts_html
from pmlray.study.budget.allowance import spent_seconds
from pmlray.study.findings.fitted_runs import (
    certificate,
    fit_observations,
    fitted_runs,
    refit_is_due,
)
from pmlray.study.findings.memft_pairs import MemftPair, memft_pairs
from pmlray.study.findings.placed_law import fitted_places, measured_placements
from pmlray.study.findings.recall import RecallResult, forecast_at, recall_result
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.types import DesignPoint, FailedRun, Observation, PackTimes


@dataclass(frozen=True)
class LawSnapshot:
    """Law after a round, with the number of runs and their cost (gpu_seconds) so far."""

    round: int
    n_observations: int
    gpu_seconds: float
    law: LawSummary


@dataclass(frozen=True)
class GpuSeconds:
    """gpu_seconds of a search by phase, `spent` in all with what machine failures lost, and the
    `budget` of both phases."""

    law: float
    memft: float
    spent: float
    budget: float


@dataclass(frozen=True, repr=False)
class SearchResult:
    """Result of a search as its report shows it.

    Attributes:
        observations, failures: finished runs, and attempts that left no result.
        snapshots: the law after each round that it was fitted anew in.
        pairs: MemFT runs beside plain fine-tuning.
        packs: wall times.
        calibration: cost of the first steps, where it was measured.

    Example:
        >>> found = Search.load("runs/smoke").result()
        >>> len(found.observations), found.law
        (14, LawSummary(...))
        >>> found.gpu_seconds.spent <= found.gpu_seconds.budget
        True
    """

    spec: SearchSpec
    observations: tuple[Observation, ...]
    failures: tuple[FailedRun, ...]
    snapshots: tuple[LawSnapshot, ...]
    pairs: tuple[MemftPair, ...]
    packs: tuple[PackTimes, ...]
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        found = ", ".join(f"{name}: {value}" for name, value in self.overview().items())
        return f"SearchResult({self.spec.search_id}, {found})"

    def _repr_html_(self) -> str:
        return facts_html(self.spec.search_id, self.overview())

    def overview(self) -> dict[str, str]:
        """Return what there is by name, in words: runs, cost, the laws of loss and of recall."""
        n_failed, seconds = sum(not f.left_out for f in self.failures), self.gpu_seconds
        law = "too few points" if self.law is None else self.law.title
        recall = self.recall_result.why_not or "law of recall fitted"
        return {
            "runs": f"{len(self.observations)} measured, {n_failed} failed",
            "gpu_seconds": f"{seconds.spent:.0f} of {seconds.budget:.0f}",
            "law": law,
            "recall": recall,
        }

    @property
    def law(self) -> LawSummary | None:
        """Law fitted to all observations; None while too few points are measured."""
        return self.snapshots[-1].law if self.snapshots else None

    @property
    def law_observations(self) -> tuple[Observation, ...]:
        """Observations of the law, in the order in which they were chosen."""
        return tuple(o for o in self.observations if o.phase == "law")

    @property
    def placements(self) -> tuple[str, ...]:
        """Names of the placements that have runs; none for a search with one place."""
        return measured_placements(self.spec, self.observations)

    @cached_property
    def fitted_places(self) -> Mapping[str | None, Placement | None]:
        """Placement of the law by the name that points have, as `fitted_places` gives it."""
        if self.law is None:
            return {}
        return fitted_places(self.law, fitted_runs(self.spec, self.observations))

    @cached_property
    def choices(self) -> tuple[PlacementChoice, ...]:
        """Placements by what storing a text costs there; none while the law has one placement."""
        if self.law is None or not self.law.unseen.data.several_placements:
            return ()
        return measured_choices(self.law, fitted_runs(self.spec, self.observations))

    @cached_property
    def sizes(self) -> tuple[Sizing, ...]:
        """Rank, length and steps that bring the mean loss to ln 2 around each target; none without
        a law."""
        return () if self.law is None else self.law.sizes()

    @cached_property
    def certificates(self) -> tuple[Certificate | None, ...]:
        """Effect of more steps on each observation; None where no curve was kept."""
        return tuple(certificate(o, self.spec.recipe) for o in self.observations)

    @cached_property
    def recall_result(self) -> RecallResult:
        """Recall against loss, from all observations."""
        return recall_result(self.observations, self.law, fitted_runs(self.spec, self.observations))

    @property
    def recall(self) -> RecallLaw | None:
        """Law of recall; None while it cannot be fitted to the runs."""
        return self.recall_result.law

    def forecast(self, point: DesignPoint) -> RecallForecast:
        """Forecast loss and recall of one new run at a point of this search, with 90% intervals.

        Raises:
            FitError: the runs determine no law of the loss, or none of recall.
            DataError: the law knows no such placement.

        Example:
            >>> found = Search.load("runs/smoke").result()
            >>> there = found.forecast(DesignPoint(lora_rank=8, seq_len=64, train_steps=60))
            >>> there.exact.low <= there.exact.value <= there.exact.high
            True
        """
        if self.law is None or self.recall is None:
            why = self.recall_result.why_not or "they determine no law of the loss"
            raise FitError(f"recall cannot be forecast from these runs: {why}")
        if point.placement not in self.fitted_places:
            names = ", ".join(str(name) for name in self.fitted_places)
            raise DataError(f"no run has the placement {point.placement}; these have: {names}")
        fitted = fitted_runs(self.spec, self.observations)
        place, rng = self.fitted_places[point.placement], np.random.default_rng(0)
        return forecast_at(self.recall, self.law, fitted, point, place, rng)

    @property
    def gpu_seconds(self) -> GpuSeconds:
        """What was spent on each phase and in all, and the budget."""
        spent = spent_seconds(self.observations, self.failures, self.calibration)
        lost = sum(f.gpu_seconds for f in self.failures if f.infrastructure)
        budget = self.spec.budget.law_seconds
        if self.spec.memft is not None:
            budget += self.spec.budget.memft_seconds
        return GpuSeconds(**spent, spent=sum(spent.values()) + lost, budget=budget)

    def _choices_json(self) -> dict[str, Any]:
        return {"choices": [c.to_json() for c in self.choices]} if self.choices else {}

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable result, without the observations themselves."""
        law = self.law
        return {
            "search_id": self.spec.search_id,
            "dtype": self.spec.model.base_dtype,
            "n_observations": len(self.law_observations),
            "n_failed": sum(not f.left_out for f in self.failures),
            "n_left_out_of_packs": sum(f.left_out for f in self.failures),
            "certificates": dict(Counter(c.status if c else "unknown" for c in self.certificates)),
            "n_left_out": len(self.law_observations)
            - len(fitted_runs(self.spec, self.law_observations)),
            "rounds": len({o.round for o in self.law_observations}),
            "law": law.to_json() | self._choices_json() if law else None,
            "heldout_mape": law.heldout_mape if law else None,
            "recall": {
                "exact_recall_counts": recall_rule(self.observations),
                **self.recall_result.to_json(),
            },
            "memft": [pair.to_json() for pair in self.pairs],
            "gpu_seconds": asdict(self.gpu_seconds),
        }


def assemble(
    spec: SearchSpec,
    observations: Sequence[Observation],
    failures: Sequence[FailedRun],
    packs: Sequence[PackTimes],
    calibration: Calibration | None = None,
) -> SearchResult:
    """Build a result with the law refitted when the search refitted it, and to all runs.

    DataError where exact recall does not count the same in all of them.
    """
    recall_rule(observations)
    law_points = [o for o in observations if o.phase == "law"]
    in_round = Counter(o.round for o in law_points)
    snapshots, n_known, n_fitted = [], 0, 0
    for last in sorted(in_round):
        n_known += in_round[last]
        if n_known < len(law_points) and not refit_is_due(n_known, n_fitted):
            continue
        known, n_fitted = [o for o in law_points if o.round <= last], n_known
        if (law := fit_observations(spec, known)) is not None:
            spent = sum(o.gpu_seconds for o in known)
            snapshots.append(LawSnapshot(last, len(known), spent, law))
    return SearchResult(
        spec,
        tuple(observations),
        tuple(failures),
        tuple(snapshots),
        memft_pairs(observations),
        tuple(packs),
        calibration,
    )
