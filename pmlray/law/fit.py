"""Fit a law to measured points by least squares, from many starts, and say how it went."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from pmlray.errors import FitError
from pmlray.law.advice import what_next
from pmlray.law.data import BoolArray, FloatArray, LawData
from pmlray.law.forms import CAPPED
from pmlray.law.noise import LEAST_NOISE, Noise, noise_varies
from pmlray.law.problem import ASSUMED_NOISE_SHARE, Problem, build_problem
from pmlray.law.protocol import Form, Law
from pmlray.law.robust import FitOptions, settle
from pmlray.law.solver import scaled_inverse
from pmlray.law.starts import grid_starts


class FitStatus(StrEnum):
    """How far a fit can be trusted; the message names the parameters concerned."""

    CONVERGED = "CONVERGED"
    BOUND_HIT = "BOUND_HIT"
    MAX_ITER = "MAX_ITER"
    UNDERDETERMINED = "UNDERDETERMINED"


@dataclass(frozen=True, slots=True)
class LawFit:
    """A fitted law with what is needed to judge it.

    `cov` (P, P) is the covariance of `law.params`: sigma^2 (J'WJ + sigma^2 / prior variance)^-1,
    Laplace's approximation under the weak prior, which matters only for parameters that the points
    leave open. `noise` is that of the residuals, and `rss` their sum of squares, nats^2 per token.
    `n_obs` points were fitted; `n_censored` are saturated ones, set aside or taken as lower bounds
    as `options` say. `values` (N,) stand for the fitted points' delta_loss, measured or, where
    censored, expected; `weights` (N,) are Huber's over the noise's relative variance: W of the
    covariance, whose sigma is the noise at its reference. `condition_number` is that of
    the points' information, scaled to a unit diagonal; `unidentified` names the parameters that the
    points leave at least as open as the weak prior does. UNDERDETERMINED: the weak prior took part
    in the fit, and the message says why and what to measure next. `noise_known` is False where no
    residual tells the noise, which is then assumed.
    """

    law: Law
    cov: FloatArray
    noise: Noise
    rss: float
    n_obs: int
    n_censored: int
    status: FitStatus
    message: str
    options: FitOptions
    values: FloatArray
    weights: FloatArray
    condition_number: float
    unidentified: tuple[str, ...]
    noise_known: bool

    @property
    def sigma(self) -> float:
        """Noise of a run at the noise's reference value, nats per token."""
        return self.noise.sigma


def usable_points(data: LawData, form: Form, options: FitOptions | None = None) -> BoolArray:
    """The points (N,) that a form is fitted to.

    An uncapped form has no ceiling, so points with final_loss <= ln 2 are set aside, as in the
    paper (arXiv 2605.30260, filter of its fits), unless `options` censor them. The capped forms
    keep all points.
    """
    if form in CAPPED or (options or FitOptions()).saturated == "censor":
        return np.ones(len(data), dtype=bool)
    return ~saturated_points(data, math.log(2.0))


def censored_points(points: LawData, form: Form, options: FitOptions) -> BoolArray:
    """Those of the points (N,) that a form is fitted to which count as lower bounds only."""
    if options.saturated == "filter":
        return np.zeros(len(points), dtype=bool)
    return saturated_points(points, options.floor if form in CAPPED else math.log(2.0))


def saturated_points(data: LawData, floor: float) -> BoolArray:
    """The points (N,) with final_loss <= floor nats per token; base_loss - delta_loss where
    final_loss is unknown, and none where both are."""
    implied = data.base_loss - data.delta_loss
    final = np.where(np.isnan(data.final_loss), implied, data.final_loss)
    return final <= floor


def fit_law(
    data: LawData, form: Form, *, start: Law | None = None, options: FitOptions | None = None
) -> LawFit:
    """Fit one form of the law.

    `power`: exponents outside, C and b inside by variable projection; the other forms: all
    parameters, each point of a capped form capped by its own base loss. Exponents stay in [0, 4],
    gamma in [-1, 4], the sharpness in [0.5, 32], a break's drop in [0, 4] and its rank among those
    measured; gamma is free when the points differ in train_steps. With fewer points than
    parameters + 1, fewer design cells than parameters, one rank or one length, or a parameter that
    the points leave more open than the weak prior does, the prior joins the fit. `start`, a law of
    the same form, replaces the grid of starts. Raises FitError when no usable law exists.
    """
    options = options or FitOptions()
    used = usable_points(data, form, options)
    points = data.subset(used)
    n_set_aside = int(len(data) - len(points))
    _require_points(points, form, n_set_aside)
    censored = censored_points(points, form, options)
    # Lower bounds alone fix no law: the fit begins with what was measured.
    known = points.subset(~censored)
    _require_points(known, form, n_set_aside + int(censored.sum()))
    problem = build_problem(known, form)
    rms = float(np.sqrt(np.mean(known.delta_loss**2))) or 1.0
    assumed = ASSUMED_NOISE_SHARE * rms
    dof = len(known) - problem.n_params
    reasons = _shortages(known, problem.n_params)
    unidentified: tuple[str, ...] = ()
    prior_weight, sigma = 0.0, assumed
    theta, rss, at_rest = None, 0.0, True
    if not reasons:
        theta, rss, at_rest = _minimise(problem, 0.0, start)
        if theta is not None:
            sigma = math.sqrt(rss / dof)
            if dof < problem.n_params and sigma < LEAST_NOISE:
                # That a law goes through so few points does not show how well a run repeats.
                reasons = ["few points, fitted exactly: no residual tells the noise"]
                sigma = assumed
            elif unidentified := _vague_parameters(problem, theta, known, sigma):
                reasons = [f"the points do not identify {', '.join(unidentified)}"]
                sigma = math.sqrt((rss + assumed**2) / (dof + 1))
    if reasons:
        prior_weight = sigma
        theta, _, at_rest = _minimise(problem, sigma, start)
    if theta is None:
        raise FitError(
            "delta_loss does not grow with rank or fall with length in these points, so no power"
            " law fits; measure more ranks and lengths, or fit the ceiling form"
        )
    if censored.any():
        first, problem = problem.law(theta), build_problem(points, form)
        theta = problem.theta(first)
    values, weights = problem.y_N, np.ones(len(points))
    noise = Noise(sigma, ref=rms)
    by_value = options.noise == "by_value" and not reasons and _noise_varies(problem, theta, known)
    if options.loss == "huber" or censored.any() or by_value:
        noise = replace(noise, sigma=max(sigma, 1e-9))
        done = settle(problem, theta, noise, prior_weight, censored, options, by_value=by_value)
        theta, values, weights, noise = done.theta_P, done.y_N, done.weight_N, done.noise
        at_rest = at_rest and done.at_rest
    law = problem.law(theta)
    fitted = law.predict(points.lora_rank, points.seq_len, points.train_steps, points.base_loss)
    status, message = _verdict(problem, law, theta, reasons, at_rest)
    cov, information = _covariance(problem, theta, points, noise.sigma, weights, with_prior=True)
    return LawFit(
        law=law,
        cov=cov,
        noise=noise,
        rss=float(np.sum((values - fitted) ** 2)),
        n_obs=len(points),
        n_censored=n_set_aside + int(censored.sum()),
        status=status,
        message=message if not reasons else f"{message}; {what_next(points, unidentified)}",
        options=options,
        values=values,
        weights=weights,
        condition_number=_condition_number(information),
        unidentified=unidentified,
        noise_known=not reasons or bool(unidentified),
    )


def _require_points(points: LawData, form: Form, n_censored: int) -> None:
    if len(points) == 0:
        what = f"all {n_censored} points have final_loss <= ln 2" if n_censored else "no points"
        raise FitError(f"{what}: nothing to fit; measure lower ranks or longer sequences")
    if form in CAPPED and np.any(np.isnan(points.base_loss)):
        raise FitError(
            f"the {form} form needs the base loss of every point; pass --base-loss, or fit the"
            " power form"
        )


def _shortages(points: LawData, n_params: int) -> list[str]:
    reasons: list[str] = []
    if len(points) < n_params + 1:
        reasons.append(f"{len(points)} points for {n_params} parameters")
    elif np.unique(points.cells()).size < n_params:
        reasons.append(f"fewer distinct (r, l, t) than the {n_params} parameters")
    if np.unique(points.lora_rank).size < 2:
        reasons.append("one rank only, which leaves rank_exponent open")
    if np.unique(points.seq_len).size < 2:
        reasons.append("one length only, which leaves len_exponent open")
    return reasons


def _minimise(
    problem: Problem, prior_weight: float, start: Law | None
) -> tuple[FloatArray | None, float, bool]:
    """The best theta (None when no start leads to C > 0), its rss and whether it is stationary."""
    targets = problem.targets(prior_weight)
    if start is None:
        starts = grid_starts(problem, targets)
    else:
        if start.form != problem.form:
            raise FitError(f"a {start.form} law cannot start the fit of the {problem.form} form")
        starts = problem.theta(start)[None]
    if len(starts) == 0:
        return None, 0.0, False
    solution = problem.solve(starts, targets.repeated(len(starts)))
    usable = np.all(np.isfinite(solution.theta_BP), axis=1) & np.isfinite(solution.rss_B)
    if not np.any(usable):
        return None, 0.0, False
    best = int(np.argmin(np.where(usable, solution.rss_B, np.inf)))
    return solution.theta_BP[best], float(solution.rss_B[best]), bool(solution.stationary_B[best])


def _covariance(
    problem: Problem,
    theta: FloatArray,
    points: LawData,
    sigma: float,
    weights: FloatArray,
    *,
    with_prior: bool,
) -> tuple[FloatArray, FloatArray]:
    """Covariance of the law's params (P, P), and the points' information J'WJ in nats^2 (P, P)."""
    law = problem.law(theta)
    jac = law.jacobian(points.lora_rank, points.seq_len, points.train_steps, points.base_loss)
    information = jac.T @ (weights[:, None] * jac)
    prior = np.diag((sigma / problem.prior_sd_P) ** 2) if with_prior else 0.0
    return sigma**2 * scaled_inverse(information + prior), information


def _noise_varies(problem: Problem, theta: FloatArray, known: LawData) -> bool:
    law = problem.law(theta)
    mean = law.predict(known.lora_rank, known.seq_len, known.train_steps, known.base_loss)
    ref = float(np.sqrt(np.mean(known.delta_loss**2))) or 1.0
    return noise_varies(mean, known.delta_loss - mean, problem.n_params, ref)


def _condition_number(information_PP: FloatArray) -> float:
    size = np.sqrt(np.maximum(np.diag(information_PP), 1e-300))
    values = np.linalg.eigvalsh(information_PP / np.outer(size, size))
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


def _vague_parameters(
    problem: Problem, theta: FloatArray, points: LawData, sigma: float
) -> tuple[str, ...]:
    """Parameters that the points alone leave at least as open as the weak prior does."""
    alike = np.ones(len(points))
    cov, information = _covariance(problem, theta, points, sigma, alike, with_prior=False)
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(size, size))
    null = np.sum(vectors[:, values <= 1e-13 * values[-1]] ** 2, axis=1) > 1e-2
    open_ = null | (np.diag(cov) > problem.prior_sd_P**2)
    names = problem.law(theta).param_names
    return tuple(name for name, is_open in zip(names, open_, strict=True) if is_open)


def _verdict(
    problem: Problem, law: Law, theta: FloatArray, reasons: list[str], stationary: bool
) -> tuple[FitStatus, str]:
    at_bound = (theta <= problem.lower_P) | (theta >= problem.upper_P)
    bounded = [name for name, hit in zip(law.param_names, at_bound, strict=True) if hit]
    notes: list[str] = []
    if reasons:
        notes.append("; ".join(reasons) + "; a weak prior fills in")
    if not stationary:
        notes.append("the search stopped before it reached a minimum")
    if bounded:
        notes.append(f"at its bound: {', '.join(bounded)}")
    if reasons:
        status = FitStatus.UNDERDETERMINED
    elif not stationary:
        status = FitStatus.MAX_ITER
    else:
        status = FitStatus.BOUND_HIT if bounded else FitStatus.CONVERGED
    return status, "; ".join(notes)
