"""Checklist of what a reader needs to repeat a fit and to judge it.

The items are those whose absence "(Mis)Fitting: A Survey of Scaling Laws" (arXiv 2502.18969) finds
in most papers that fit such laws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pmlray.law.data import SATURATED_SHARE, FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedLaw
from pmlray.law.fitting.fit import HUBER_K, LawFit, censored_points, usable_points
from pmlray.law.fitting.form_model import (
    BEYOND_SD,
    BUDGET_EXPONENT,
    DRIFT_SD,
    LEN_EXPONENT,
    OFFSET_SHARE,
    RANK_EXPONENT,
    START_EXPONENTS,
    build_model,
)
from pmlray.law.fitting.posterior import SIGMAS
from pmlray.law.fitting.run_noise import SHARED, SPREAD, TYPICAL
from pmlray.law.fitting.site_effects import (
    DEPTH_SD,
    FACTOR_SD,
    KIND_SD,
    OWN_SD,
    SCALES,
    SPREAD_SD,
)
from pmlray.law.forms.protocol import Form
from pmlray.law.forms.registry import CAPPED
from pmlray.law.validation.residuals import ResidualStructure
from pmlray.law.validation.unseen import MOST_LEFT_OUT

LEVEL = 0.9
_POWER = "C r^alpha l^-beta{budget}{drift}"
_CURVES = ("u^2", "u v", "v^2", "u s", "v s", "s^2")
# Axes: distance from the middle of the points, the same clipped to the points, and its ratio.
_AXES = (("x", "u", "r / r_mid"), ("y", "v", "l_mid / l"), ("w", "s", "t / t_mid"))
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


def equation(form: Form, fits_budget: bool, drifts: bool = True) -> str:
    """Return the formula of a form in plain text. `drifts`: include the drift of its exponents,
    with coefficients d1, d2 and so on."""
    budget = " (t / t_ref)^gamma" if fits_budget else ""
    power = _POWER.format(budget=budget, drift=" exp(q)" if drifts else "")
    text = _EQUATIONS[form].format(power=power)
    if not drifts:
        return text
    axes, curves = (_AXES, _CURVES) if fits_budget else (_AXES[:2], _CURVES[:3])
    beyond = [f"{end}({x} - {u}, 0)" for x, u, _ in axes for end in ("max", "min")]
    terms = " + ".join(f"d{i} {term}" for i, term in enumerate([*curves, *beyond], start=1))
    where = [f"{x} = log({of}); {u} = clip({x}, {u}_low, {u}_high)" for x, u, of in axes]
    return "; ".join([text, f"q = {terms}", *where])


def checklist(
    data: LawData,
    average: AveragedLaw,
    n_samples: int,
    residuals: ResidualStructure,
) -> Mapping[str, str]:
    """Return every item of the checklist by its name, for the fit of `average.best` to `data`.

    n_samples: those that the intervals come from; residuals: those of that fit.
    """
    fit = average.best
    used = usable_points(data, fit.law.form, fit.options)
    points = data.subset(used)
    weights = ", ".join(f"{form} {weight:.3g}" for form, weight in average.by_form.items())
    return {
        "form": f"{fit.law.form}: "
        + equation(fit.law.form, fit.law.fits_budget, fit.law.drift is not None),
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
        "prior": _prior(fit),
        "intervals": f"central {100 * LEVEL:g} % of {n_samples} samples of what is believed over"
        " forms, sizes of the noise, parameters and drift (points and prior drawn anew, solved"
        " again)",
        "held-out protocol": "extrapolation: the largest length and the largest rank, each from a"
        " fit to the smaller ones; held out: each (r, l, t) cell from a fit to the others; new"
        f" sequence: each (sequence, seed) from a fit to the others (of more than {MOST_LEFT_OUT}"
        " that many, drawn at random); mean |error| / |delta_loss| of"
        f" points at most {100 * SATURATED_SHARE:g} % saturated",
        "weights of the forms": f"{weights}; by their evidence (Laplace's approximation)",
        **_placements(data, fit),
    }


def _placements(data: LawData, fit: LawFit) -> dict[str, str]:
    """Describe what ranks of several placements count as; empty where there is one."""
    if fit.places is None or not data.several_placements:
        return {}
    reference, log_w = data.placements[0], fit.places.log_worth_K.tolist()
    shown = ", ".join(
        f"{placement.name} {placement.params_per_rank:g} a rank, log w {value!r}"
        for placement, value in zip(data.placements, log_w, strict=True)
    )
    scales = ", ".join(f"{scale:g} ({share:g})" for scale, share in SCALES)
    return {
        "placements": f"r is the adapter's parameters times w, over {reference.params_per_rank:g},"
        f" those of a rank of {reference.name}: {shown}",
        "prior of log w": f"{fit.options.worth}: sums of normal effects of mean 0 and standard"
        f" deviation {KIND_SD:g} a kind of module, {DEPTH_SD:g} of 2 depth - 1 and of its square,"
        f" {SPREAD_SD:g} of sites over all depths, {OWN_SD:g} a placement ({FACTOR_SD:g} without"
        f" the others), all times a scale of {scales}, of which the points choose",
    }


def _parameters(fit: LawFit) -> str:
    """List parameters with as many digits as give the same floats back."""
    stored = fit.law.to_json()
    if (drift := fit.law.drift) is not None:
        stored |= {"log r_mid": drift.log_rank, "log l_mid": drift.log_len}
        stored |= {"log t_mid": drift.log_steps} if fit.law.fits_budget else {}
        for (_, name, _), low, high in zip(_AXES, drift.low, drift.high, strict=False):
            stored |= {f"{name}_low": low, f"{name}_high": high}
        stored |= dict(zip(drift.names, drift.coefs, strict=True))
    return ", ".join(
        f"{name} {value!r}" for name, value in stored.items() if isinstance(value, float)
    )


def _loss(fit: LawFit) -> str:
    text = "squared residuals in delta_loss (not in its logarithm) over their noise, and the prior"
    if fit.options.loss == "huber":
        text += f"; the noise of a point beyond {HUBER_K} of it is taken larger (Huber)"
    return text


def _optimiser(fit: LawFit) -> str:
    return (
        f"Levenberg-Marquardt with bounds from {len(START_EXPONENTS)} starts at each of"
        f" {SIGMAS.size} sizes of the noise, twice, since the noise depends on the offset"
    )


def _prior(fit: LawFit) -> str:
    def normal(centre_and_sd: tuple[float, float]) -> str:
        return "N({:g}, {:g}^2)".format(*centre_and_sd)

    items = {"rank_exponent": RANK_EXPONENT, "len_exponent": LEN_EXPONENT}
    items |= {"budget_exponent": BUDGET_EXPONENT} if fit.law.fits_budget else {}
    items |= {"offset / base loss": OFFSET_SHARE}
    shown = ", ".join(f"{name} {normal(of)}" for name, of in items.items())
    return (
        f"{shown}; drift {normal((0.0, DRIFT_SD))} by squared natural logarithms from the middle of"
        f" the points, {normal((0.0, BEYOND_SD))} by those beyond them; noise {TYPICAL:g} of the"
        f" memorised loss, within a factor e^{SPREAD:g}"
    )


def _bounds(points: LawData, fit: LawFit) -> str:
    model = build_model(
        points,
        fit.law.form,
        fit.noise.base_loss,
        np.full(len(points), np.inf),
        np.ones(len(points), dtype=bool),
    )
    rows = zip(fit.law.param_names, model.lower_P, model.upper_P, strict=True)
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
    text = (
        f"a run's standard deviation is {fit.sigma:.3g} of its loss reduction above the offset,"
        f" less as it saturates, and at least {fit.noise.floor:.3g} nats per token;"
        f" {100 * SHARED:g} % of its variance is the text's"
    )
    if (spread := residuals.spread) is not None:
        text += f"; {spread.between:.4g} between (sequence, seed) pairs, {spread.within:.4g} within"
    return text
