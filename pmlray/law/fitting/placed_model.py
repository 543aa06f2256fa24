"""Model of one form at points of several placements: the law of effective ranks.

Shapes: as in `form_model`, K placements, T effects, which follow the law's own parameters in theta.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from pmlray.law.data import BoolArray, FloatArray, IntArray, LawData
from pmlray.law.fitting.form_model import REACH, FormModel, build_model
from pmlray.law.fitting.site_effects import SiteEffects, Worth, site_effects
from pmlray.law.forms.broken import log_bend
from pmlray.law.forms.protocol import Form


@dataclass(frozen=True, slots=True)
class PlacedModel(FormModel):
    """Model of a form whose points' ranks are those of the reference placement that their
    parameters are worth."""

    effects: SiteEffects
    place_N: IntArray

    def values(self, theta_BP: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return delta_loss at every point, nats per token, (B, N), and its Jacobian (B, N, P)."""
        drift = self.blank.drift
        assert drift is not None
        law_BP, effects_BT = theta_BP[:, : self.n_law], theta_BP[:, self.n_law :]
        worth_BK, by_effect_BKT = self.effects.log_worths(effects_BT)
        worth_BN = worth_BK[:, self.place_N]
        u_BN, *others = np.broadcast_arrays(
            self.exponents_NK[:, 0] + worth_BN, *self.exponents_NK.T[1:]
        )
        terms_BNQ, slopes_BNQ = drift.terms_at(u_BN, *others), drift.rank_slopes(u_BN, *others)
        exponents_BNK = np.stack([u_BN, *others], axis=-1)
        coefs_BQ1 = law_BP[:, self.drift_columns, None]
        log_a = law_BP[:, :1] + (exponents_BNK @ law_BP[:, self.columns, None])[:, :, 0]
        log_a = log_a + (terms_BNQ @ coefs_BQ1)[:, :, 0]
        log_rank_BN = self.log_rank_N + worth_BN
        value, jac = self.bounded(law_BP, log_a, exponents_BNK, terms_BNQ, log_rank_BN)
        slope_BN = law_BP[:, 1:2] + (slopes_BNQ @ coefs_BQ1)[:, :, 0]
        if self.form == "broken":
            slope_BN = slope_BN - log_bend(log_rank_BN - law_BP[:, -1:], law_BP[:, -2:-1])[2]
        by_effects = (jac[:, :, 0] * slope_BN)[:, :, None] * by_effect_BKT[:, self.place_N]
        return value, np.concatenate([jac, by_effects], axis=2)

    def at_scale(self, scale: float) -> PlacedModel:
        """Return the same model with another scale of the prior of the effects."""
        effects = replace(self.effects, scale=scale)
        n_law, sd_T = self.n_law, effects.sd_T
        return replace(
            self,
            effects=effects,
            lower_P=np.concatenate([self.lower_P[:n_law], -REACH * sd_T]),
            upper_P=np.concatenate([self.upper_P[:n_law], REACH * sd_T]),
            sd_P=np.concatenate([self.sd_P[:n_law], sd_T]),
        )


def law_model(
    data: LawData,
    form: Form,
    scale: float,
    limit_N: FloatArray,
    inside_N: BoolArray,
    worth: Worth,
) -> FormModel:
    """Build the model of a form: of ranks where all points share a placement, else of effective
    ranks; the arguments are those of `build_model` and of `site_effects`."""
    plain = build_model(data, form, scale, limit_N, inside_N)
    if data.placement is None or not data.several_placements:
        return plain
    effects = site_effects(data.placements, worth)
    sd_T = effects.sd_T
    of_law: dict[str, Any] = {f.name: getattr(plain, f.name) for f in fields(plain)}
    grown: dict[str, Any] = {
        "lower_P": np.concatenate([plain.lower_P, -REACH * sd_T]),
        "upper_P": np.concatenate([plain.upper_P, REACH * sd_T]),
        "mean_P": np.concatenate([plain.mean_P, np.zeros(sd_T.size)]),
        "sd_P": np.concatenate([plain.sd_P, sd_T]),
        "slopes_MP": np.pad(plain.slopes_MP, ((0, 0), (0, sd_T.size))),
    }
    return PlacedModel(**of_law | grown, effects=effects, place_N=data.placement)
