"""Result of a search, rebuilt from its store alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import SearchSpec
from pmlray.errors import FitError
from pmlray.law import (
    LawData,
    LawSummary,
    PlacedPoint,
    Placement,
    PlacementChoice,
    RecallLaw,
    Sizing,
    fit_law,
    law_data,
    measured_choices,
)
from pmlray.law.validation.convergence import MIN_POINTS, Certificate, certify
from pmlray.live_packs import Calibration
from pmlray.study.budget.allowance import spent_seconds
from pmlray.study.findings.memft_pairs import MemftPair, memft_pairs
from pmlray.study.findings.placed_law import fitted_places, measured_placements
from pmlray.study.findings.recall import RecallResult, recall_result
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.types import DesignPoint, FailedRun, Observation, PackTimes

# A law refitted to less than 10 % more runs hardly changes. Refits after every pack would take too
# long in a search of hundreds of points.
REFIT_GROWTH = 1.1


@dataclass(frozen=True)
class LawSnapshot:
    """Law after a round, with the number of runs and their cost (gpu_seconds) so far."""

    round: int
    n_observations: int
    gpu_seconds: float
    law: LawSummary


@dataclass(frozen=True)
class SearchResult:
    """Result of a search as its report shows it.

    `law` is None while too few points are measured.
    """

    spec: SearchSpec
    observations: tuple[Observation, ...]
    failures: tuple[FailedRun, ...]
    snapshots: tuple[LawSnapshot, ...]
    pairs: tuple[MemftPair, ...]
    packs: tuple[PackTimes, ...]
    calibration: Calibration | None = None

    @property
    def law(self) -> LawSummary | None:
        """Law fitted to all observations."""
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

    def gpu_seconds(self) -> dict[str, float]:
        """Return the gpu_seconds spent on the law, on MemFT and in all, and the budget of both.

        `spent`, the total, includes what machine failures lost.
        """
        spent = spent_seconds(self.observations, self.failures, self.calibration)
        lost = sum(f.gpu_seconds for f in self.failures if f.infrastructure)
        budget = self.spec.budget.law_seconds
        if self.spec.memft is not None:
            budget += self.spec.budget.memft_seconds
        return {**spent, "spent": sum(spent.values()) + lost, "budget": budget}

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
            "gpu_seconds": self.gpu_seconds(),
        }


def certificate(observation: Observation, recipe: Recipe) -> Certificate | None:
    """Return the effect of more steps on a run; None where no curve was kept, as in a replay."""
    if len(observation.curve) < MIN_POINTS:
        return None
    return certify(
        observation.curve,
        observation.point.train_steps,
        schedule=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        decay_share=recipe.decay_share,
        stop_loss=recipe.stop_loss,
        grad_norm=observation.grad_norm,
    )


def fitted_runs(spec: SearchSpec, observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """Return the runs that the law is fitted to: those of its phase that `spec.law` keeps.

    A run whose curve was not kept never counts as optimisation-limited.
    """
    of_law = tuple(o for o in observations if o.phase == "law")
    if spec.law.optimisation_limited == "keep":
        return of_law
    found = ((o, certificate(o, spec.recipe)) for o in of_law)
    return tuple(o for o, c in found if c is None or c.status != "optimisation_limited")


def fit_observations(spec: SearchSpec, observations: Sequence[Observation]) -> LawSummary | None:
    """Fit the law to observations; None while they determine none.

    The seed of the samples is fixed, so that the same observations give the same intervals.
    """
    try:
        data = law_data(fitted_runs(spec, observations))
        return fit_law(
            data,
            forms=spec.law.forms,
            n_bootstrap=spec.law.n_bootstrap,
            targets=_targets(spec, data, {o.point.placement for o in observations}),
            options=spec.law.fit_options(),
        )
    except FitError:
        return None


def _targets(
    spec: SearchSpec, data: LawData, seen: Collection[str | None]
) -> tuple[DesignPoint | PlacedPoint, ...]:
    """Return the targets at the placements that have runs: of one, in ranks of the law itself."""
    points = [point for point in spec.target_points() if point.placement in seen]
    if not data.several_placements:
        return tuple(points)
    by_name = {placement.name: placement for placement in data.placements}
    return tuple(
        PlacedPoint(point, by_name[point.placement])
        for point in points
        if point.placement in by_name
    )


def refit_is_due(n_runs: int, n_fitted: int, growth: float = REFIT_GROWTH) -> bool:
    """Return whether the runs have grown by the factor `growth` since a law was last fitted."""
    return n_runs > n_fitted and n_runs >= growth * n_fitted


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
