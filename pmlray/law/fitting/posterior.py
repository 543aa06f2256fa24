"""Posterior of the law given points: forms, noise and drift, each with its weight.

One form is a nonlinear regression with a prior; its noise is known but for its size. Sizes and
forms are weighted by their evidence, by Laplace's approximation (MacKay 2003, Information Theory,
chapter 27). Samples are drawn by randomising points and prior and solving anew, which gives the
posterior of a linear model exactly and follows the curvature of others (randomize-then-optimize,
Bardsley et al. 2014, doi:10.1137/140964023).

Shapes: F forms, G sizes of the noise, N points, P parameters, S starts, n samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import FloatArray, LawData, informative_points
from pmlray.law.fitting.fit import (
    HUBER_K,
    FitOptions,
    FitStatus,
    LawFit,
    censored_points,
    usable_points,
)
from pmlray.law.fitting.form_model import FormModel
from pmlray.law.fitting.levenberg_marquardt import scaled_inverse
from pmlray.law.fitting.placed_model import PlacedModel, law_model
from pmlray.law.fitting.run_noise import SPREAD, TYPICAL, RunNoise, Whitening, whitening
from pmlray.law.fitting.site_effects import SCALES, FittedPlaces, site_effects
from pmlray.law.forms.protocol import Form
from pmlray.law.forms.registry import CAPPED

log = logging.getLogger(__name__)

# Grid for the size of a run's noise, in spreads of its prior.
STEPS_OF_SPREAD = np.linspace(-2.0, 2.0, 7)
SIGMAS = TYPICAL * np.exp(SPREAD * STEPS_OF_SPREAD)
# The noise depends on the offset, and the offset's fit on the noise: two passes are enough.
PASSES = 2
LARGEST_OFFSET_SHARE = 0.6
# A parameter whose posterior spread is at least this share of its prior's is unidentified.
OPEN = 0.9
# Samples differ by a sum of squares of about one; each is solved to within a small share of that.
SAMPLE_TOL = 1e-5


@dataclass(frozen=True, slots=True)
class FormPosterior:
    """Posterior of one form: its likeliest theta (G, P) at each of SIGMAS, their weights (G,),
    which add up to 1, and the log evidence over all of them."""

    model: FormModel
    data: LawData
    noise: RunNoise
    unit_N: FloatArray
    floor_N: FloatArray
    theta_GP: FloatArray
    weight_G: FloatArray
    log_evidence: float

    def whitening(self, sigma_B: FloatArray) -> Whitening:
        """Return the noise of the points at B sizes of sigma."""
        return whitening(self.unit_N, self.floor_N, sigma_B, self.data.cluster)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw about n samples of the law's params, followed by the effects of placements where
        there are several, (n, P), and of sigma (n,)."""
        at = rng.choice(SIGMAS.size, size=n, p=self.weight_G)
        noise = self.whitening(SIGMAS[at])
        y = self.data.delta_loss + noise.draw(rng)
        mean = self.model.mean_P + self.model.sd_P * rng.standard_normal((n, self.model.sd_P.size))
        theta = self.model.solve(self.theta_GP[at], y, mean, noise, SAMPLE_TOL).theta_BP
        usable = np.all(np.isfinite(theta), axis=1)
        return theta[usable] @ self.model.to_params.T, SIGMAS[at][usable]


def form_posterior(data: LawData, form: Form, options: FitOptions) -> FormPosterior:
    """Return the posterior of one form; FitError when these points cannot be used to fit it."""
    _require_points(data, form, options)
    known = data.base_loss[np.isfinite(data.base_loss)]
    capped = known.size > 0
    largest = float(np.max(np.abs(data.delta_loss))) or 1.0
    scale = float(np.median(known)) if capped else largest
    bounds = censored_points(data, form, options)
    inside = informative_points(data)
    inside = inside if inside.any() else np.ones(len(data), dtype=bool)
    limit = np.where(bounds, data.delta_loss, math.inf)
    model = law_model(data, form, scale, limit, inside, options.worth)
    noise = RunNoise(TYPICAL, scale, model.mean_P[3], capped)
    outlying_N = np.ones(len(data))
    found = None
    for _ in range(PASSES):
        found = _likeliest(data, model, noise, outlying_N, found)
        best = found.theta_GP[int(np.argmax(found.weight_G))]
        offset = float(np.clip(best[3], 0.0, LARGEST_OFFSET_SHARE * scale))
        noise = replace(noise, offset=offset)
        if options.loss == "huber":
            outlying_N = _outlying(found, best)
    assert found is not None
    return found


def _likeliest(
    data: LawData,
    model: FormModel,
    noise: RunNoise,
    outlying_N: FloatArray,
    before: FormPosterior | None,
) -> FormPosterior:
    """Find the likeliest theta and the evidence at each size of the noise."""
    base_N = np.where(np.isfinite(model.cap_N), model.cap_N, noise.base_loss)
    unit = noise.unit(data.delta_loss, base_N)
    if before is not None:
        # Otherwise a run that is low by chance would get the largest weight.
        best = before.theta_GP[[int(np.argmax(before.weight_G))]]
        unit = np.maximum(unit, noise.unit(model.values(best)[0][0], base_N))
    unit_N, floor_N = unit * outlying_N, noise.floor * outlying_N
    n_sizes = SIGMAS.size
    if before is None:
        starts_GSP = np.repeat(model.starts()[None], n_sizes, axis=0)
    else:
        starts_GSP = before.theta_GP[:, None]
    n_starts = starts_GSP.shape[1]
    of_sizes = whitening(unit_N, floor_N, SIGMAS, data.cluster)
    each = np.repeat(np.arange(n_sizes), n_starts)
    solution = model.solve(
        starts_GSP.reshape(-1, model.mean_P.size),
        np.broadcast_to(data.delta_loss, (each.size, len(data))),
        np.broadcast_to(model.mean_P, (each.size, model.mean_P.size)),
        of_sizes.rows(each),
    )
    rss_GS = np.where(np.isfinite(solution.rss_B), solution.rss_B, np.inf).reshape(n_sizes, -1)
    best = rss_GS.argmin(axis=1)
    of_each = np.arange(n_sizes)
    theta_GP = solution.theta_BP.reshape(n_sizes, n_starts, -1)[of_each, best]
    _, jac = model.values(theta_GP)
    white = of_sizes.whiten(jac)
    hessian = white.transpose(0, 2, 1) @ white + np.diag(model.sd_P**-2.0)
    log_evidence_G = (
        -0.5 * rss_GS[of_each, best]
        - of_sizes.log_det()
        - np.log(model.sd_P).sum()
        - 0.5 * np.linalg.slogdet(hessian)[1]
        - 0.5 * STEPS_OF_SPREAD**2
    )
    top = float(log_evidence_G.max())
    weight_G = np.exp(log_evidence_G - top)
    total = float(weight_G.sum())
    return FormPosterior(
        model, data, noise, unit_N, floor_N, theta_GP, weight_G / total, top + math.log(total)
    )


def _outlying(found: FormPosterior, theta_P: FloatArray) -> FloatArray:
    """Return the factor on each point's noise that gives it Huber's weight."""
    sigma = SIGMAS[int(np.argmax(found.weight_G))]
    residual = found.data.delta_loss - found.model.values(theta_P[None])[0][0]
    apart = np.abs(residual) / np.hypot(sigma * found.unit_N, found.floor_N)
    return np.sqrt(np.maximum(apart / HUBER_K, 1.0))


def form_fit(found: FormPosterior, options: FitOptions) -> LawFit:
    """Return the likeliest law of a form at the likeliest noise, with its covariance there."""
    at = int(np.argmax(found.weight_G))
    model, sigma, data = found.model, float(SIGMAS[at]), found.data
    noise = replace(found.noise, sigma=sigma)
    _, jac = model.values(found.theta_GP[at : at + 1])
    white = found.whitening(SIGMAS[at : at + 1]).whiten(jac)[0]
    information = white.T @ white
    cov_theta = scaled_inverse(information + np.diag(model.sd_P**-2.0))
    likeliest_P = model.to_params @ found.theta_GP[at]
    law = model.blank.with_params(likeliest_P[: model.n_law])
    cov = model.to_params @ cov_theta @ model.to_params.T
    places = _places(model, data, likeliest_P, cov, options)
    form = law.form
    used = usable_points(data, form, options)
    points = data.subset(used)
    ranks = points.lora_rank
    if places is not None and points.placement is not None and places.several:
        ranks = places.law_ranks(ranks, points.placement)
    fitted = law.predict(ranks, points.seq_len, points.train_steps, points.base_loss)
    bounds = censored_points(points, form, options)
    values = np.where(bounds, np.maximum(fitted, points.delta_loss), points.delta_loss)
    variance = (sigma * found.unit_N[used]) ** 2 + found.floor_N[used] ** 2
    open_ = np.sqrt(np.diag(cov_theta)) >= OPEN * model.sd_P
    names = zip(law.param_names, open_[: model.n_law].tolist(), strict=True)
    drift_names = () if law.drift is None else law.drift.names
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    eigenvalues: FloatArray = np.linalg.eigvalsh(information / np.outer(scale, scale))
    condition = eigenvalues[-1] / eigenvalues[0] if eigenvalues[0] > 0 else math.inf
    return LawFit(
        law=law,
        cov=cov[: model.n_law, : model.n_law],
        noise=noise,
        rss=float(np.sum((values - fitted) ** 2)),
        n_obs=len(points),
        n_censored=int(len(data) - len(points) + bounds.sum()),
        status=FitStatus.CONVERGED,
        message="",
        options=options,
        values=values,
        weights=sigma**2 / variance,
        condition_number=float(condition),
        unidentified=tuple(name for name, x in names if x and name not in drift_names),
        places=places,
    )


def _places(
    model: FormModel, data: LawData, likeliest_P: FloatArray, cov: FloatArray, options: FitOptions
) -> FittedPlaces | None:
    """Return what placements are worth; None where the points do not say theirs.

    Points of one placement leave the effects of others as they are believed beforehand.
    """
    if isinstance(model, PlacedModel):
        return FittedPlaces(model.effects, likeliest_P[model.n_law :], cov)
    if not data.placements:
        return None
    effects = site_effects(data.placements, options.worth)
    n_law, sd_T = len(cov), effects.sd_T
    apart = np.zeros((n_law + sd_T.size, n_law + sd_T.size))
    apart[:n_law, :n_law] = cov
    apart[n_law:, n_law:] = np.diag(sd_T**2)
    return FittedPlaces(effects, np.zeros(sd_T.size), apart)


def _require_points(data: LawData, form: Form, options: FitOptions) -> None:
    if not np.any(usable_points(data, form, options)):
        reason = f"all {len(data)} points have final_loss <= ln 2" if len(data) else "no points"
        raise FitError(f"{reason}: nothing to fit; measure lower ranks or longer sequences")
    if form in CAPPED and np.any(np.isnan(data.base_loss)):
        raise FitError(
            f"the {form} form needs the base loss of every point; pass --base-loss, or fit the"
            " power form"
        )


def all_posteriors(
    data: LawData, forms: Sequence[Form], options: FitOptions
) -> tuple[FormPosterior, ...]:
    """Return the posterior of every form that can be fitted to the points, at each scale of what
    placements differ by where there are several; FitError when none can."""
    found: list[FormPosterior] = []
    reasons: list[str] = []
    for form in forms:
        try:
            found += _at_scales(form_posterior(data, form, options), options)
        except FitError as error:
            reasons.append(f"{form}: {error}")
    if not found:
        raise FitError("; ".join(reasons))
    return tuple(found)


def _at_scales(found: FormPosterior, options: FitOptions) -> list[FormPosterior]:
    """Return the posterior at every scale of what placements differ by; itself where no effects
    tell placements apart."""
    model = found.model
    if not isinstance(model, PlacedModel) or not model.effects.sd_T.size:
        return [found]
    outlying_N = np.ones(len(found.data))
    if options.loss == "huber":
        outlying_N = _outlying(found, found.theta_GP[int(np.argmax(found.weight_G))])
    posteriors: list[FormPosterior] = []
    for scale, share in SCALES:
        of_scale = found
        if scale != model.effects.scale:
            of_scale = _likeliest(found.data, model.at_scale(scale), found.noise, outlying_N, found)
        evidence = of_scale.log_evidence + math.log(share)
        posteriors.append(replace(of_scale, log_evidence=evidence))
    return posteriors


def evidence_weights(found: Sequence[FormPosterior]) -> tuple[float, ...]:
    """Return the weights of the forms by their evidence, in the order given, adding up to 1."""
    log_F = np.array([form.log_evidence for form in found])
    weight_F = np.exp(log_F - log_F.max())
    weights = tuple((weight_F / weight_F.sum()).tolist())
    shown = ", ".join(f"{f.model.form} {w:.2f}" for f, w in zip(found, weights, strict=True))
    log.info("weights by evidence: %s", shown)
    return weights
