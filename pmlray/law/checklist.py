"""What a reader needs to repeat a fit and to judge it.

The items are those whose absence "(Mis)Fitting: A Survey of Scaling Laws" (arXiv 2502.18969) finds
in most papers that fit such laws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pmlray.law.averaging import AveragedLaw
from pmlray.law.data import FloatArray, LawData
from pmlray.law.fit import LawFit, censored_points, usable_points
from pmlray.law.forms import CAPPED
from pmlray.law.problem import build_problem
from pmlray.law.protocol import Form
from pmlray.law.residuals import ResidualStructure
from pmlray.law.robust import HUBER_K
from pmlray.law.starts import BUDGET_GRID, EXPONENT_GRID, N_STARTS

LEVEL = 0.9
_POWER = "C r^alpha l^-beta{budget}"
_EQUATIONS: Mapping[Form, str] = MappingProxyType(
    {
        "power": "delta_loss = {power} + b",
        "ceiling": "delta_loss = z / (1 + (z / L0)^n)^(1/n), z = {power} + b, L0 the base loss",
        "exponential_ceiling": (
            "delta_loss = L0 (1 - exp(-z / L0)), z = {power} + b, L0 the base loss"
        ),
        "broken": "delta_loss = {power} (1 + (r / r_b)^4)^(-drop / 4) + b",
    }
)


def equation(form: Form, fits_budget: bool) -> str:
    """A form as a formula of its parameters, in plain text."""
    power = _POWER.format(budget=" (t / t_ref)^gamma" if fits_budget else "")
    return _EQUATIONS[form].format(power=power)


def checklist(
    data: LawData,
    average: AveragedLaw,
    n_bootstrap: int,
    residuals: ResidualStructure,
) -> Mapping[str, str]:
    """Every item of the checklist by its name, for the fit of `average.best` to `data`.

    n_bootstrap: the resamples that the intervals come from; residuals: those of that fit.
    """
    fit = average.best
    used = usable_points(data, fit.law.form, fit.options)
    points = data.subset(used)
    weights = ", ".join(f"{form} {weight:.3g}" for form, weight in average.by_form.items())
    return {
        "form": f"{fit.law.form}: {equation(fit.law.form, fit.law.fits_budget)}",
        "units": "losses in nats per supervised token; l in supervised tokens; t in optimiser steps"
        ", 0 where unknown",
        "parameters": _parameters(fit),
        "loss": _loss(fit),
        "optimiser": _optimiser(fit),
        "convergence": f"{fit.status}{': ' + fit.message if fit.message else ''}",
        "bounds": _bounds(points, fit),
        "points": _points(data, points, fit),
        "filter": _filter(fit),
        "ranges": "; ".join(
            f"{name} {_range(values)}"
            for name, values in (
                ("lora_rank", points.lora_rank),
                ("seq_len", points.seq_len),
                ("train_steps", points.train_steps),
                ("delta_loss", points.delta_loss),
            )
        ),
        "sequences and seeds": _clusters(points),
        "noise": _noise(fit, residuals),
        "intervals": f"central {100 * LEVEL:g} %, wild cluster bootstrap of {n_bootstrap} resamples"
        " (signs flipped by (sequence, seed), CR2 residuals, HC3 where every point is its own;"
        " scaled to Student's tails)",
        "held-out protocol": "extrapolation: the largest length and the largest rank, each from a"
        " fit to the smaller ones; held out: each (r, l, t) cell from a fit to the others; new"
        " sequence: each (sequence, seed) from a fit to the others; mean |error| / |delta_loss|",
        "weights of the forms": f"{weights}; proportional to (mean squared held-out share error)"
        "^(-cells / 2)",
    }


def _parameters(fit: LawFit) -> str:
    """As many digits as give the same floats back."""
    stored = fit.law.to_json()
    return ", ".join(
        f"{name} {value!r}" for name, value in stored.items() if isinstance(value, float)
    )


def _loss(fit: LawFit) -> str:
    if fit.options.loss == "huber":
        return (
            f"Huber's of the residuals in delta_loss, k {HUBER_K} times the noise level, which is"
            f" 1.4826 times their median absolute deviation; {_weighting(fit)}"
        )
    return f"sum of squared residuals in delta_loss (not in its logarithm), {_weighting(fit)}"


def _weighting(fit: LawFit) -> str:
    if fit.noise.power == 0:
        return "points weighted alike"
    return f"points weighted by |delta_loss|^{-2 * fit.noise.power:.3g}, the inverse noise variance"


def _optimiser(fit: LawFit) -> str:
    n_grid = len(EXPONENT_GRID) ** 2 * (len(BUDGET_GRID) if fit.law.fits_budget else 1)
    linear = "C and b by variable projection, " if fit.law.form == "power" else ""
    return (
        f"Levenberg-Marquardt with bounds, {linear}from up to {N_STARTS[fit.law.form]} starts, the"
        f" best of a grid of {n_grid} exponents; the least loss wins"
    )


def _bounds(points: LawData, fit: LawFit) -> str:
    problem = build_problem(points, fit.law.form)
    rows = zip(fit.law.param_names, problem.lower_P, problem.upper_P, strict=True)
    # The amplitude is bounded where the design is centred; no data come near its bounds.
    return ", ".join(
        f"{name} [{low:.4g}, {high:.4g}]" for name, low, high in rows if name != "log_coef"
    )


def _points(data: LawData, points: LawData, fit: LawFit) -> str:
    n_bounds = int(censored_points(points, fit.law.form, fit.options).sum())
    return (
        f"{len(points) - n_bounds} fitted, {len(data) - len(points)} set aside, {n_bounds} censored"
        f" (lower bounds); {np.unique(points.cells()).size} distinct (r, l, t) for"
        f" {fit.law.params.size} parameters"
    )


def _filter(fit: LawFit) -> str:
    if fit.options.saturated == "censor":
        floor = fit.options.floor if fit.law.form in CAPPED else math.log(2.0)
        return f"final_loss <= {floor:.4g} nats counts as a lower bound of delta_loss (Tobit)"
    if fit.law.form in CAPPED:
        return "none: a form with a ceiling keeps saturated points"
    return "points with final_loss <= ln 2 are set aside (arXiv 2605.30260)"


def _range(values: FloatArray) -> str:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return f"{low:g}" if low else "unknown"
    return f"{low:g} to {high:g} ({np.unique(values).size} values)"


def _clusters(points: LawData) -> str:
    n = np.unique(points.cluster).size
    if n == len(points):
        return f"{n}, one a point: not told apart, so every point counts as independent"
    return f"{n} (sequence, seed) pairs of {len(points)} points"


def _noise(fit: LawFit, residuals: ResidualStructure) -> str:
    text = f"sigma {fit.sigma:.4g} nats per token"
    if fit.noise.power:
        text += (
            f" at |delta_loss| {fit.noise.ref:.4g}, growing as its power {fit.noise.power:.3g}"
            " (pseudo-likelihood; equal noise refused at the 5 % level)"
        )
    elif fit.options.noise == "by_value":
        text += " at every delta_loss (equal noise not refused at the 5 % level)"
    if (spread := residuals.spread) is not None:
        text += f"; {spread.between:.4g} between (sequence, seed) pairs, {spread.within:.4g} within"
    return text
