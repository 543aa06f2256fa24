"""Law of recall: token, prefix and exact recall at a mean loss.

A mean loss is spread over tokens, some of which lie far above it. The law says which share of them
ends up wrong, token by token: with m the final loss, B the base loss and j a token's place in its
record, from 0,

    probit P(wrong) = steepness (logit(m / B) - logit(half_loss / B))
                      - lead (1 - m / B) exp(-j / LEAD_TOKENS) + spread v,  v ~ N(0, 1) once a run.

The first term is the spread of token losses about their mean, log-normal in the odds of the loss
that is left: of the tables of SmolLM2-135M it told recall better than a log-logistic spread, whose
tail is too heavy near full recall, and than a Gumbel one, whose tail is too light. The second says
that the beginning of a record is learnt first; v is what runs of one mean loss differ by. Given v,
tokens are independent: greedy decoding reproduces a record when all of its tokens are right, and
its prefix up to the first that is wrong.

Shapes: N losses, B bins of positions, V nodes of v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtr

from pmlray.errors import DataError
from pmlray.law.data import FloatArray, IntArray

# Decay length of the lead of a record's beginning, tokens: the tables of random tokens and of phone
# books on SmolLM2-135M were both predicted best with 3 to 6.
LEAD_TOKENS = 4.0
# Positions below this have a bin each; later ones share bins of half an octave.
SINGLE_POSITIONS = 16
# Gauss-Hermite nodes and weights of v, (V,), made once: a loss for a recall takes 60 predictions.
NODES_V, _unscaled_V = np.polynomial.hermite_e.hermegauss(15)
NODE_WEIGHT_V = _unscaled_V / _unscaled_V.sum()
# Losses are clipped to these shares of the base loss.
LOSS_SHARES = (1e-9, 1.0 - 1e-6)
SLOPE_STEP = 1e-3
# Enough to resolve the logits between LOSS_SHARES to double precision.
BISECTIONS = 60
# Probits are clipped here: beyond, a token is right or wrong to double precision.
MAX_PROBIT = 8.0


@dataclass(frozen=True, slots=True)
class RecallShares:
    """Token, prefix and exact recall as shares, as in `pmlray.types.Recall`; equal shapes."""

    token: FloatArray
    prefix: FloatArray
    exact: FloatArray


@dataclass(frozen=True, slots=True)
class RecallLaw:
    """Fitted law of recall; the module's docstring gives its equation.

    `half_loss` and `base_loss` in nats per token; at half_loss every second token deep in a record
    is wrong. `cov` (4, 4) is the covariance of (logit(half_loss / base_loss), ln steepness, lead,
    ln spread). `tokens_per_record` is that of the runs, None where each was one record. `n_runs`
    were fitted.
    """

    half_loss: float
    steepness: float
    lead: float
    spread: float
    base_loss: float
    cov: FloatArray
    tokens_per_record: float | None
    n_runs: int

    @property
    def params(self) -> FloatArray:
        """Parameters in the order of `cov`, (4,)."""
        half = float(logit(self.half_loss / self.base_loss))
        return np.array([half, np.log(self.steepness), self.lead, np.log(self.spread)])

    def records(self, seq_len: float) -> tuple[float, int]:
        """Return the tokens of a record, and the number of records in seq_len supervised tokens."""
        if self.tokens_per_record is None:
            return float(seq_len), 1
        return self.tokens_per_record, max(1, round(seq_len / self.tokens_per_record))

    def predict(self, loss: ArrayLike, tokens_per_record: float) -> RecallShares:
        """Return the expected recall of runs that end at this mean loss, nats per token, any
        shape."""
        position_B, width_B = position_bins(_tokens(tokens_per_record))
        mean = np.asarray(loss, dtype=float)[..., None]
        params_V4 = np.broadcast_to(self.params, (NODES_V.size, 4))
        q = ndtr(wrong_probits(params_V4, NODES_V, mean, self.base_loss, position_B))
        survived = np.exp(np.cumsum(width_B * np.log1p(-q), axis=-1))
        begun = np.concatenate([np.ones_like(survived[..., :1]), survived[..., :-1]], axis=-1)
        total = width_B.sum()
        prefix = np.sum(begun * _right_in_bin(q, width_B), axis=-1) / total
        token = 1.0 - q @ width_B / total
        return RecallShares(
            token @ NODE_WEIGHT_V, prefix @ NODE_WEIGHT_V, survived[..., -1] @ NODE_WEIGHT_V
        )

    def sample(
        self, loss: FloatArray, tokens_per_record: float, n_records: int, rng: np.random.Generator
    ) -> RecallShares:
        """Draw the recall of single runs that end at these losses (N,), one draw each.

        Draws include the uncertainty of the parameters, the differences between runs of one loss,
        and the counting of whole tokens and records.
        """
        position_B, width_B = position_bins(_tokens(tokens_per_record))
        params = rng.multivariate_normal(self.params, self.cov, loss.size)
        v = rng.standard_normal(loss.size)
        q_NB = ndtr(wrong_probits(params, v, loss, self.base_loss, position_B))
        alive = np.full(loss.size, n_records)
        wrong, right = np.zeros(loss.size), np.zeros(loss.size)
        q: FloatArray
        for q, width in zip(q_NB.T, map(int, width_B), strict=True):
            failing = rng.binomial(alive, -np.expm1(width * np.log1p(-q)))
            dead, alive = n_records - alive, alive - failing
            before = _right_before_failure(failing, q, width, rng)
            after = failing * (width - 1) - before
            wrong += failing + rng.binomial(after + dead * width, q)
            right += alive * width + before
        total = n_records * width_B.sum()
        return RecallShares(1.0 - wrong / total, right / total, alive / n_records)

    def loss_for(self, exact_recall: float, tokens_per_record: float) -> float:
        """Return the mean final loss, nats per token, at which this exact recall is expected.

        exact_recall: a share of records between 0 and 1, both excluded; DataError otherwise.
        """
        if not 0.0 < exact_recall < 1.0:
            raise DataError(
                f"an exact recall of {exact_recall:g} is asked for: choose a share of records"
                " between 0 and 1, such as 0.99"
            )
        low, high = (float(logit(share)) for share in LOSS_SHARES)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            loss = self.base_loss * float(expit(middle))
            enough = self.predict(loss, tokens_per_record).exact >= exact_recall
            low, high = (middle, high) if enough else (low, middle)
        return self.base_loss * float(expit(low))

    def loss_samples(
        self, exact_recall: float, tokens_per_record: float, n: int, rng: np.random.Generator
    ) -> FloatArray:
        """Draw `loss_for` n times, nats per token, with the uncertainty of the parameters.

        The logit of its share of the base loss is taken as linear in `params`, whose covariance is
        `cov`; the slopes are central differences.
        """

        def logit_share(params: FloatArray) -> float:
            half, ln_steepness, lead, ln_spread = params.tolist()
            law = replace(
                self,
                half_loss=self.base_loss * float(expit(float(half))),
                steepness=float(np.exp(ln_steepness)),
                lead=lead,
                spread=float(np.exp(ln_spread)),
            )
            return float(logit(law.loss_for(exact_recall, tokens_per_record) / self.base_loss))

        steps = SLOPE_STEP * np.eye(4)
        slope = np.array(
            [logit_share(self.params + s) - logit_share(self.params - s) for s in steps]
        ) / (2.0 * SLOPE_STEP)
        sd = float(np.sqrt(slope @ self.cov @ slope))
        middle = logit_share(self.params)
        return self.base_loss * expit(middle + sd * rng.standard_normal(n))

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only; `se` are standard errors of `params`."""
        names = ("logit_half_share", "ln_steepness", "lead", "ln_spread")
        return {
            "half_loss": self.half_loss,
            "steepness": self.steepness,
            "lead": self.lead,
            "lead_tokens": LEAD_TOKENS,
            "spread": self.spread,
            "base_loss": self.base_loss,
            "tokens_per_record": self.tokens_per_record,
            "n_runs": self.n_runs,
            "se": dict(zip(names, np.sqrt(np.diag(self.cov)).tolist(), strict=True)),
        }


def wrong_probits(
    params_N4: FloatArray,
    v_N: FloatArray,
    loss: FloatArray,
    base_loss: float,
    position_B: FloatArray,
) -> FloatArray:
    """Return the probits of P(wrong), (..., N, B), of runs with their own parameters and v.

    loss: nats per token, broadcast over (..., N).
    """
    half, ln_steepness, lead, ln_spread = np.moveaxis(params_N4, -1, 0)
    share = np.clip(loss / base_loss, *LOSS_SHARES)
    level = np.exp(ln_steepness) * (logit(share) - half) + np.exp(ln_spread) * v_N
    ahead = lead * (1.0 - share)
    probits = level[..., None] - ahead[..., None] * np.exp(-position_B / LEAD_TOKENS)
    return np.clip(probits, -MAX_PROBIT, MAX_PROBIT)


def position_bins(n_tokens: int) -> tuple[FloatArray, IntArray]:
    """Return the mean positions and the widths (B,) of the bins of a record of n_tokens."""
    octaves = np.log2(max(n_tokens / SINGLE_POSITIONS, 1.0))
    wide = np.round(SINGLE_POSITIONS * 2.0 ** np.arange(0.0, octaves, 0.5)).astype(np.int64)
    starts = np.concatenate([np.arange(SINGLE_POSITIONS), wide])
    starts = starts[starts < n_tokens]
    width = np.diff(np.append(starts, n_tokens))
    return starts + (width - 1) / 2.0, width


def _tokens(tokens_per_record: float) -> int:
    if not (np.isfinite(tokens_per_record) and tokens_per_record > 0):
        raise DataError(f"a record of {tokens_per_record} tokens cannot be recalled")
    return max(1, round(tokens_per_record))


def _right_in_bin(q: FloatArray, width_B: IntArray) -> FloatArray:
    """Return the expected number of right tokens before a bin's first wrong one, at most its
    width."""
    # Near q = 0 the geometric series is the width, less what the first wrong token cuts off.
    few = width_B - q * width_B * (width_B + 1) / 2.0
    many = (1.0 - q) * -np.expm1(width_B * np.log1p(-q)) / q
    return np.where(q * width_B < 1e-6, few, many)


def _right_before_failure(
    failing: IntArray, q: FloatArray, width: int, rng: np.random.Generator
) -> IntArray:
    """Draw the right tokens before the failures of `failing` records, each failing within the bin.

    Within a bin of half an octave the place of a failure is close to uniform, tilted to the
    beginning by q; the sum over records is drawn from a normal distribution and rounded.
    """
    if width == 1:
        return np.zeros_like(failing)
    fails = -np.expm1(width * np.log1p(-q))
    mean = (_right_in_bin(q, np.array(width)) - width * (1.0 - fails)) / fails
    sd = np.minimum(np.sqrt((width**2 - 1) / 12.0), np.sqrt(1.0 - q) / q)
    drawn = failing * mean + np.sqrt(failing) * sd * rng.standard_normal(failing.size)
    return np.clip(np.round(drawn), 0, failing * (width - 1)).astype(np.int64)
