"""Fit of a search's law to its runs: which of them count, at which targets, and when anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import SearchSpec
from pmlray.errors import FitError
from pmlray.law import LawData, LawSummary, PlacedPoint, fit_law, law_data
from pmlray.law.validation.convergence import MIN_POINTS, Certificate, certify
from pmlray.types import DesignPoint, Observation

# A law refitted to less than 10 % more runs hardly changes. Refits after every pack would take too
# long in a search of hundreds of points.
REFIT_GROWTH = 1.1


def certificate(observation: Observation, recipe: Recipe) -> Certificate | None:
    """Return the effect of more steps on a run; None where no curve was kept, as in a replay."""
    if len(observation.curve) < MIN_POINTS:
        return None
    return certify(
        observation.curve,
        observation.point.train_steps,
        schedule=recipe.under(observation.point.schedule).schedule,
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
