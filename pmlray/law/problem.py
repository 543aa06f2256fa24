"""A law's fit as least-squares residuals, many targets and weights at once.

Shapes: B problems over the same N points, P free parameters, K exponents. `theta` holds the law's
`params` with log C replaced by the log amplitude at the centre of the design (mean log r, mean
log l, t_ref), which takes most of the correlation between C and the exponents away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pmlray.law.broken import log_bend
from pmlray.law.censoring import censored_residual
from pmlray.law.data import BoolArray, FloatArray, IntArray, LawData
from pmlray.law.forms import CAPPED, blank_law
from pmlray.law.protocol import Form, Law
from pmlray.law.saturation import saturate, saturate_exponentially
from pmlray.law.solver import TINY, Solution, levenberg_marquardt

EXPONENT_BOUNDS = (0.0, 4.0)
BUDGET_BOUNDS = (-1.0, 4.0)
SHARPNESS_BOUNDS = (0.5, 32.0)
# Centre and spread of the weak prior. The power exponents are the fit of the paper's own points
# (arXiv 2605.30260, figure 2a), the ceiling's its fit to the same points.
PRIOR_EXPONENTS: dict[Form, tuple[float, float]] = {
    "power": (0.66, 0.56),
    "ceiling": (0.88, 0.76),
    "exponential_ceiling": (0.88, 0.76),
    "broken": (0.66, 0.56),
}
PRIOR_EXPONENT_SD = 0.3
PRIOR_BUDGET = (0.2, 0.3)
PRIOR_LOG_SHARPNESS = (math.log(5.0), 1.0)
# A break is the exception: its prior is no break, as likely at any measured rank.
DROP_BOUNDS, PRIOR_DROP = (0.0, 4.0), (0.0, 0.3)
# Spread of the offset's prior and the noise assumed while no noise can be estimated, both as
# shares of the points' root mean square.
PRIOR_OFFSET_SHARE = 0.3
ASSUMED_NOISE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Targets:
    """What B problems are fitted to: y (B, N) nats, root weights (B, N), prior centre (B, P).

    `prior_weight` is the noise in nats that one prior standard deviation is worth; 0 leaves the
    prior out. Of the points that `censored_N` marks, y is a lower bound, under noise of `sd_N`
    nats.
    """

    y_BN: FloatArray
    root_w_BN: FloatArray
    prior_BP: FloatArray
    prior_weight: float
    censored_N: BoolArray | None = None
    sd_N: FloatArray | None = None

    def repeated(self, n: int) -> Targets:
        """One problem, n times."""
        return replace(
            self,
            y_BN=np.repeat(self.y_BN, n, axis=0),
            root_w_BN=np.repeat(self.root_w_BN, n, axis=0),
            prior_BP=np.repeat(self.prior_BP, n, axis=0),
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """The points of a fit in centred logarithms, with the law's bounds and prior.

    `x_NK` are the derivatives of the log amplitude by the exponents: log r, -log l, log t/t_ref.
    """

    form: Form
    fits_budget: bool
    ref_steps: float
    centre: tuple[float, float]
    x_NK: FloatArray
    y_N: FloatArray
    base_N: FloatArray
    lower_P: FloatArray
    upper_P: FloatArray
    prior_mean_P: FloatArray
    prior_sd_P: FloatArray

    @property
    def n_params(self) -> int:
        """P."""
        return self.lower_P.size

    @property
    def exponent_columns(self) -> list[int]:
        """Columns of theta that hold the K exponents."""
        return [1, 2, 4] if self.fits_budget else [1, 2]

    def targets(self, prior_weight: float) -> Targets:
        """The measured points themselves, as one problem."""
        y = self.y_N[None]
        return Targets(y, np.ones_like(y), self.prior_mean_P[None], prior_weight)

    def solve(self, start_BP: FloatArray, targets: Targets) -> Solution:
        """Fit B problems, each from its row of `start_BP`."""
        negligible = 1e-18 * np.sum((targets.y_BN * targets.root_w_BN) ** 2, axis=1)
        if self.form == "power" and targets.censored_N is None:
            return self._solve_projected(start_BP, targets, negligible)
        return levenberg_marquardt(
            lambda theta, rows: self._residuals(theta, rows, targets),
            start_BP,
            self.lower_P,
            self.upper_P,
            negligible,
        )

    def _solve_projected(
        self, start_BP: FloatArray, targets: Targets, negligible_B: FloatArray
    ) -> Solution:
        columns = self.exponent_columns

        def residuals(e_BK: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
            _, _, r, jac = self.project(e_BK, targets, rows)
            return r, jac

        outer = levenberg_marquardt(
            residuals,
            start_BP[:, columns],
            self.lower_P[columns],
            self.upper_P[columns],
            negligible_B,
        )
        amplitude, offset, _, _ = self.project(outer.theta_BP, targets, np.arange(outer.rss_B.size))
        theta = np.empty_like(start_BP)
        # An amplitude <= 0 is no law: NaN marks it for the caller.
        theta[:, 0] = np.log(np.where(amplitude > 0, amplitude, np.nan))
        theta[:, 3] = offset
        theta[:, columns] = outer.theta_BP
        return Solution(theta, outer.rss_B, outer.stationary_B)

    def project(
        self, e_BK: FloatArray, targets: Targets, rows: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Amplitude, offset, residuals and d residuals/d exponents of the power form.

        Variable projection (Golub and Pereyra 1973, doi:10.1137/0710036): given the exponents e,
        y = c g + b k is linear. With vectors scaled by the root weights, k their constant column
        and v' = v - k (k.v)/(k.k): c = g'.y' / g'.g' and r = y' - c g'. Since d g/de = g x,
        dc = (dg'.y' - 2 c g'.dg') / g'.g' and dr = -(dc g' + c dg'). The prior of the offset is one
        more point with g = 0; the priors of the exponents are appended below r.
        """
        c, offset, r, (g, gc, gg, yc, k, kk) = self.fit_linear(e_BK, targets, rows)
        columns = self.exponent_columns
        dg = g[:, :, None] * np.vstack([self.x_NK, np.zeros(len(columns))])
        dg_mean = np.einsum("bn,bnk->bk", k, dg) / kk
        dgc = dg - k[:, :, None] * dg_mean[:, None, :]
        dc = (np.einsum("bnk,bn->bk", dgc, yc) - 2 * c * np.einsum("bnk,bn->bk", dgc, gc)) / gg
        jac = -(dc[:, None, :] * gc[:, :, None] + c[:, :, None] * dgc)
        if targets.prior_weight > 0:
            pull = targets.prior_weight / self.prior_sd_P[columns]
            rows_of_prior = np.broadcast_to(np.diag(pull), (rows.size, *(len(columns),) * 2))
            jac = np.concatenate([jac, rows_of_prior], axis=1)
        return c[:, 0], offset, r, jac

    def fit_linear(
        self, e_BK: FloatArray, targets: Targets, rows: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, tuple[FloatArray, ...]]:
        """c (B, 1), offset (B,) and r of `project`, and its g, g', g'.g', y', k and k.k: without
        the derivatives, which are most of its work."""
        root_w, y = targets.root_w_BN[rows], targets.y_BN[rows]
        prior = targets.prior_BP[rows]
        columns = self.exponent_columns
        pull = targets.prior_weight / self.prior_sd_P
        zero = np.zeros((rows.size, 1))
        g = np.hstack([root_w * np.exp(e_BK @ self.x_NK.T), zero])
        k = np.hstack([root_w, zero + pull[3]])
        wy = np.hstack([root_w * y, pull[3] * prior[:, 3:4]])
        kk = np.einsum("bn,bn->b", k, k)[:, None]
        g_mean = np.einsum("bn,bn->b", k, g)[:, None] / kk
        y_mean = np.einsum("bn,bn->b", k, wy)[:, None] / kk
        gc, yc = g - k * g_mean, wy - k * y_mean
        gg = np.einsum("bn,bn->b", gc, gc)[:, None] + TINY
        c = np.einsum("bn,bn->b", gc, yc)[:, None] / gg
        r = yc - c * gc
        if targets.prior_weight > 0:
            r = np.hstack([r, pull[columns] * (e_BK - prior[:, columns])])
        return c, (y_mean - c * g_mean)[:, 0], r, (g, gc, gg, yc, k, kk)

    def _residuals(
        self, theta_BP: FloatArray, rows: IntArray, targets: Targets
    ) -> tuple[FloatArray, FloatArray]:
        """Residuals of any form, then those of the prior, with their Jacobian."""
        columns = self.exponent_columns
        log_a = theta_BP[:, :1] + theta_BP[:, columns] @ self.x_NK.T
        jac = np.empty((*log_a.shape, self.n_params))
        if self.form == "broken":
            above = self.x_NK[:, 0] + self.centre[0] - theta_BP[:, -1:]
            bent, by_drop, by_log_break = log_bend(above, theta_BP[:, -2:-1])
            log_a = log_a + bent
            jac[:, :, -2], jac[:, :, -1] = np.exp(log_a) * by_drop, np.exp(log_a) * by_log_break
        a = np.exp(log_a)
        z = a + theta_BP[:, 3:4]
        value, slope = z, np.ones_like(z)
        if self.form == "ceiling":
            value, slope, jac[:, :, -1] = saturate(z, self.base_N, np.exp(theta_BP[:, -1:]))
        elif self.form == "exponential_ceiling":
            value, slope = saturate_exponentially(z, self.base_N)
        jac[:, :, 0] = slope * a
        jac[:, :, columns] = (slope * a)[:, :, None] * self.x_NK
        jac[:, :, 3] = slope
        root_w, y = targets.root_w_BN[rows], targets.y_BN[rows]
        r, by_value = value - y, np.ones_like(value)
        if (mask := targets.censored_N) is not None and targets.sd_N is not None:
            r[:, mask], by_value[:, mask] = censored_residual(
                value[:, mask], y[:, mask], targets.sd_N[mask]
            )
        r, jac = root_w * r, (root_w * by_value)[:, :, None] * jac
        if targets.prior_weight > 0:
            pull = targets.prior_weight / self.prior_sd_P
            r = np.hstack([r, pull * (theta_BP - targets.prior_BP[rows])])
            rows_of_prior = np.broadcast_to(np.diag(pull), (rows.size, pull.size, pull.size))
            jac = np.concatenate([jac, rows_of_prior], axis=1)
        return r, jac

    def values(self, theta_P: FloatArray) -> FloatArray:
        """The law's value at every point, nats per token, (N,)."""
        residual, _ = self._residuals(theta_P[None], np.zeros(1, np.int64), self.targets(0.0))
        return residual[0] + self.y_N

    def shift(self, exponents: FloatArray) -> FloatArray:
        """log C minus theta's first column, for exponents (..., 2 or more)."""
        return self.centre[1] * exponents[..., 1] - self.centre[0] * exponents[..., 0]

    def params(self, theta_BP: FloatArray) -> FloatArray:
        """The law's `params` (B, P) of theta."""
        params = theta_BP.copy()
        params[:, 0] += self.shift(theta_BP[:, 1:3])
        return params

    def theta(self, law: Law) -> FloatArray:
        """theta (P,) of a law of this form, moved to this problem's t_ref."""
        exponents = np.array([law.rank_exponent, law.len_exponent])
        values = [math.log(law.coef) - float(self.shift(exponents)), *exponents, law.offset]
        if self.fits_budget:
            values[0] += law.budget_exponent * math.log(self.ref_steps / law.ref_steps)
            values.append(law.budget_exponent)
        own = law.params[4 + law.fits_budget :]
        return np.append(values, own)

    def law(self, theta_P: FloatArray) -> Law:
        """The law of theta (P,); its base loss is the points' median."""
        blank = blank_law(
            self.form, float(np.median(self.base_N)), self.ref_steps, self.fits_budget
        )
        return blank.with_params(self.params(theta_P[None])[0])


def build_problem(data: LawData, form: Form) -> Problem:
    """Set up the fit of `form` to all of the points given (N >= 1, already filtered)."""
    steps = data.train_steps
    fits_budget = bool(np.all(steps > 0) and np.unique(steps).size > 1)
    ref_steps = float(np.exp(np.mean(np.log(steps)))) if fits_budget else 1.0
    log_r, log_l = np.log(data.lora_rank), np.log(data.seq_len)
    centre = (float(log_r.mean()), float(log_l.mean()))
    columns = [log_r - centre[0], centre[1] - log_l]
    rms = float(np.sqrt(np.mean(data.delta_loss**2))) or 1.0
    reach = 10.0 * max(rms, float(np.max(data.base_loss)) if form in CAPPED else rms)
    alpha, beta = PRIOR_EXPONENTS[form]
    # One row a parameter: lower bound, upper bound, prior mean, prior standard deviation.
    table = [
        (-60.0, 60.0, 0.0, math.inf),
        (*EXPONENT_BOUNDS, alpha, PRIOR_EXPONENT_SD),
        (*EXPONENT_BOUNDS, beta, PRIOR_EXPONENT_SD),
        (-reach, reach, 0.0, PRIOR_OFFSET_SHARE * rms),
    ]
    if fits_budget:
        columns.append(np.log(steps / ref_steps))
        table.append((*BUDGET_BOUNDS, *PRIOR_BUDGET))
    if form == "ceiling":
        low, high = SHARPNESS_BOUNDS
        table.append((math.log(low), math.log(high), *PRIOR_LOG_SHARPNESS))
    if form == "broken":
        low, high = float(log_r.min()), float(log_r.max())
        table.append((*DROP_BOUNDS, *PRIOR_DROP))
        table.append((low, high, (low + high) / 2.0, max(high - low, 1e-3) / 2.0))
    bounds_and_prior = np.array(table)
    return Problem(
        form=form,
        fits_budget=fits_budget,
        ref_steps=ref_steps,
        centre=centre,
        x_NK=np.stack(columns, axis=1),
        y_N=data.delta_loss,
        base_N=data.base_loss,
        lower_P=bounds_and_prior[:, 0],
        upper_P=bounds_and_prior[:, 1],
        prior_mean_P=bounds_and_prior[:, 2],
        prior_sd_P=bounds_and_prior[:, 3],
    )
