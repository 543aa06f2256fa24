"""What an adapter's parameter is worth by where it sits, and what is believed of it beforehand.

An adapter of P_s parameters at each of its sites counts as sum_s w_s P_s parameters of the
reference placement. log w_s is the effect of the site's kind of module plus those of its depth;
a placement adds the effect of its sites lying at many depths and a deviation of its own. All are
normal about 0, so a placement with few points borrows from those that share its kinds and depths,
and one without points is told from its kin.

Shapes: B problems, K placements, S sites, X effects of a site, T effects in all.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pmlray.law.data import FloatArray, IntArray
from pmlray.law.placements import KINDS, Placement, Site

# What tells places apart: nothing but the number of parameters, one factor a placement, the kinds
# and depths of the sites alone, or these and each placement's own deviation from them.
Worth = Literal["parameters", "one_factor", "sites", "pooled"]

# Prior spreads of the effects on log w. Between places on SmolLM2-135M and a tiny random model
# bits a parameter differed by factors of up to 1.4 near convergence, and worths by up to 2: these
# make a factor of about 1.8 between two placements one standard deviation.
# All of them are believed up to a common scale, as far from convergence places differ by more:
# scales with their prior weights, of which the points choose.
SCALES = ((0.4, 0.25), (1.0, 0.4), (2.5, 0.25), (5.0, 0.1))
KIND_SD, DEPTH_SD, SPREAD_SD, OWN_SD = 0.3, 0.2, 0.3, 0.25
# Of a placement's factor where nothing is believed of its sites.
FACTOR_SD = 0.45
SITE_NAMES = (*KINDS, "depth", "depth_curve")
SITE_SDS = (*(KIND_SD,) * len(KINDS), DEPTH_SD, DEPTH_SD)
# Standard deviation of depths that are spread evenly over all layers.
EVEN_DEPTHS = math.sqrt(1.0 / 12.0)


@dataclass(frozen=True, slots=True)
class SiteEffects:
    """Worth of placements as a function of the effects, the first placement the reference.

    `scale` multiplies the prior spreads. `site_SX` are the regressors of each site, `share_S` its
    share of its placement's parameters, `member_SK` 1 where a site belongs to a placement,
    `spread_K` how widely its depths are spread.
    """

    placements: tuple[Placement, ...]
    worth: Worth
    scale: float
    site_SX: FloatArray
    share_S: FloatArray
    member_SK: FloatArray
    spread_K: FloatArray

    @property
    def by_sites(self) -> bool:
        """True where kinds and depths of sites tell placements apart."""
        return self.worth in ("sites", "pooled")

    @property
    def has_own(self) -> bool:
        """True where every placement has a deviation of its own."""
        return self.worth in ("one_factor", "pooled")

    @property
    def own_sd(self) -> float:
        """Prior spread of a placement's own deviation, 0 where it has none."""
        if not self.has_own:
            return 0.0
        return self.scale * (OWN_SD if self.by_sites else FACTOR_SD)

    @property
    def sd_T(self) -> FloatArray:
        """Prior spreads of the effects: those of sites, of spread depths, then placements' own."""
        of_sites = self.scale * np.array([*SITE_SDS, SPREAD_SD] if self.by_sites else [])
        own = np.full(len(self.placements) if self.has_own else 0, self.own_sd)
        return np.concatenate([of_sites, own])

    def place_of(self, placement: Placement) -> int | None:
        """Return a placement's place among those with points; None where it has none."""
        return self.placements.index(placement) if placement in self.placements else None

    def log_worths(self, effects_BT: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return log w of every placement, (B, K), and its derivatives (B, K, T).

        w is relative to the reference, whose own is 1.
        """
        log_BK, slope_BKT = self._log_worths(effects_BT)
        return log_BK - log_BK[:, :1], slope_BKT - slope_BKT[:, :1]

    def _log_worths(self, effects_BT: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return `log_worths` before they are taken relative to the reference."""
        n_sites, n_places = len(SITE_NAMES), len(self.placements)
        log_BK = np.zeros((len(effects_BT), n_places))
        slope_BKT = np.zeros((*log_BK.shape, effects_BT.shape[1]))
        if self.by_sites:
            effect_BX, spread_B1 = effects_BT[:, :n_sites], effects_BT[:, n_sites : n_sites + 1]
            part_BS = np.exp(effect_BX @ self.site_SX.T) * self.share_S
            sum_BK = part_BS @ self.member_SK
            for x, along_S in enumerate(self.site_SX.T):
                slope_BKT[:, :, x] = (part_BS * along_S) @ self.member_SK / sum_BK
            log_BK += np.log(sum_BK) + spread_B1 * self.spread_K
            slope_BKT[:, :, n_sites] = self.spread_K
        if self.has_own:
            log_BK += effects_BT[:, -n_places:]
            slope_BKT[:, :, -n_places:] = np.eye(n_places)
        return log_BK, slope_BKT

    def drawn(self, n: int) -> FloatArray:
        """Return n draws of the effects from the prior, (n, T), always the same."""
        return self.sd_T * np.random.default_rng(0).standard_normal((n, self.sd_T.size))

    def log_worth_of(
        self, placement: Placement, effects_BT: FloatArray, *, drawn: bool
    ) -> FloatArray:
        """Return log w of any placement, (B,).

        drawn: the effects are samples, so a placement without points draws a deviation of its own
        for each; otherwise it has none. The same placement always draws the same.
        """
        if (place := self.place_of(placement)) is not None:
            return self.log_worths(effects_BT)[0][:, place]
        n_places = len(self.placements)
        beside = site_effects((*self.placements, placement), self.worth, self.scale)
        own_B = np.zeros(len(effects_BT))
        if drawn:
            rng = np.random.default_rng(zlib.crc32(placement.name.encode()))
            own_B = self.own_sd * rng.standard_normal(len(effects_BT))
        if self.has_own:
            effects_BT = np.column_stack([effects_BT, own_B])
        return beside.log_worths(effects_BT)[0][:, n_places]


@dataclass(frozen=True, slots=True)
class FittedPlaces:
    """Likeliest effects (T,), and the posterior covariance of the law's params and the effects
    together, (P + T, P + T)."""

    effects: SiteEffects
    effects_T: FloatArray
    cov: FloatArray

    @property
    def log_worth_K(self) -> FloatArray:
        """Likeliest log w of the placements with points, (K,)."""
        return self.effects.log_worths(self.effects_T[None])[0][0]

    @property
    def several(self) -> bool:
        """True where the points of more than one placement made the law."""
        return len(self.effects.placements) > 1

    def law_ranks(self, lora_rank: FloatArray, place_N: IntArray) -> FloatArray:
        """Return the ranks (N,) of the reference placement that adapters of these ranks are worth
        at these of the effects' placements."""
        reference = self.effects.placements[0]
        ratio_K = [log_params_ratio(p, reference) for p in self.effects.placements]
        return lora_rank * np.exp(self.log_worth_K + np.array(ratio_K))[place_N]

    def log_factor(self, placement: Placement) -> float:
        """Return the log of how many ranks of the reference one rank of a placement is worth."""
        worth = self.effects.log_worth_of(placement, self.effects_T[None], drawn=False)
        return float(worth[0]) + log_params_ratio(placement, self.effects.placements[0])


def log_params_ratio(placement: Placement, reference: Placement) -> float:
    """Return the log of a placement's parameters a rank over those of the reference."""
    return math.log(placement.params_per_rank / reference.params_per_rank)


def site_effects(placements: Sequence[Placement], worth: Worth, scale: float = 1.0) -> SiteEffects:
    """Return the effects that tell these placements apart; the first is the reference."""
    rows: list[list[float]] = []
    shares: list[float] = []
    owner: list[int] = []
    for place, placement in enumerate(placements):
        for site in placement.sites:
            rows.append(_regressors(site))
            shares.append(site.params_per_rank / placement.params_per_rank)
            owner.append(place)
    member_SK = np.eye(len(placements))[owner]
    spread_K = np.array([_depth_spread(placement) for placement in placements])
    regressors, share_S = np.array(rows), np.array(shares)
    return SiteEffects(tuple(placements), worth, scale, regressors, share_S, member_SK, spread_K)


def _regressors(site: Site) -> list[float]:
    """Return the regressors of one site (X,); an unknown kind or depth is the average one."""
    kinds = [float(site.kind == kind) for kind in KINDS]
    if site.depth is None:
        return [*kinds, 0.0, 0.0]
    along = 2.0 * site.depth - 1.0
    return [*kinds, along, along**2 - 1.0 / 3.0]


def _depth_spread(placement: Placement) -> float:
    """Return the spread of a placement's depths, 0 in one layer and 1 evenly over all."""
    known = [site for site in placement.sites if site.depth is not None]
    if not known:
        return 0.0
    depth = np.array([site.depth for site in known])
    weight = np.array([site.params_per_rank for site in known])
    mean = np.average(depth, weights=weight)
    return float(np.sqrt(np.average((depth - mean) ** 2, weights=weight))) / EVEN_DEPTHS
