"""Synthetic truths for the recovery benchmark: five kinds of law, and noise of three kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from pmlray.design import CostModel, DesignSpace, Replicate
from pmlray.types import DesignPoint
from scripts.bench.design.offline import Charge, Measured, Run, World

Kind = Literal["power", "ceiling", "broken", "heteroscedastic", "clustered"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WELL_SPECIFIED: tuple[Kind, ...] = ("power", "ceiling", "heteroscedastic", "clustered")

RANKS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (64, 128, 256, 512, 1024, 2048)
TARGET_RANKS = (16, 64, 128)
TARGET_LENGTHS = (4096, 8192)
REPLICATES = ((0, 0), (1, 0), (2, 0))
# Sequences of the held-out runs: none that a policy may measure.
HELDOUT_SEQUENCES = (3, 4, 5)
STEPS = (250, 500, 1000)
BASE_LOSS = 12.0
NOISE = 0.1
COST = CostModel(1e-6, prompt_tokens=16, batch_records=None)


class Truth:
    """delta_loss of one synthetic base and task, drawn from `seed`.

    Written out by itself, so that it is no echo of pmlray.law. z = C r^a l^-b (t / 1000)^g + d;
    `power` and the noisy kinds are z itself (`heteroscedastic` noise grows with z; `clustered` adds
    an effect of each sequence), `ceiling` caps it at the base loss, `broken` lets the rank exponent
    fall at a rank inside the grid.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        rng = np.random.default_rng([KINDS.index(kind), seed])
        self.kind, self.seed = kind, seed
        self.alpha, self.beta = rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.8)
        self.gamma, self.offset = rng.uniform(0.15, 0.35), rng.uniform(-0.3, 0.8)
        self.sharpness = rng.uniform(2.0, 8.0)
        self.break_rank, self.late_alpha = rng.uniform(6, 24), self.alpha * rng.uniform(0.3, 0.6)
        # The middle of the grid reaches a third of the base loss; only `ceiling` may saturate.
        self.coef = (BASE_LOSS / 3) / (8**self.alpha * 362**-self.beta)
        if kind != "ceiling":
            top = self.coef * RANKS[-1] ** self.alpha * LENGTHS[0] ** -self.beta
            self.coef *= min(1.0, 0.9 * (BASE_LOSS - 1) / top)
        self.effect = rng.normal(
            0.0, 0.2 if kind == "clustered" else 0.0, len(REPLICATES) + len(HELDOUT_SEQUENCES)
        )

    def mean(self, point: DesignPoint) -> float:
        """The truth without noise, nats per token."""
        rank_term = point.lora_rank**self.alpha
        if self.kind == "broken":
            bend = 1 + (point.lora_rank / self.break_rank) ** 4
            rank_term *= bend ** ((self.late_alpha - self.alpha) / 4)
        budget_term = (point.train_steps / STEPS[-1]) ** self.gamma
        z = self.coef * rank_term * point.seq_len**-self.beta * budget_term + self.offset
        if self.kind == "ceiling" and z > 0:
            return float(z / (1 + (z / BASE_LOSS) ** self.sharpness) ** (1 / self.sharpness))
        return float(z)

    def measure(self, point: DesignPoint, replicate: Replicate) -> Measured:
        """One run; the same run always yields the same."""
        sequence_id, seed = replicate
        rng = np.random.default_rng(
            [self.seed, KINDS.index(self.kind), *point.to_json().values(), sequence_id, seed]
        )
        mean = self.mean(point)
        size = NOISE * (abs(mean) / 3 if self.kind == "heteroscedastic" else 1.0)
        delta = mean + self.effect[sequence_id] + size * rng.standard_normal()
        return Measured(min(delta, BASE_LOSS - 1e-3), BASE_LOSS, point.seq_len)


def charge(pack: Sequence[Run]) -> list[Charge]:
    """Every run pays for itself."""
    return [Charge(COST.predict(point), point.train_steps) for point, _ in pack]


def world(kind: Kind, seed: int) -> World:
    """The grid that policies may measure, and the larger targets that they never see."""
    truth = Truth(kind, seed)
    cells = tuple(DesignPoint(r, n, t) for r in RANKS for n in LENGTHS for t in STEPS)
    targets = tuple(DesignPoint(r, n, STEPS[-1]) for r in TARGET_RANKS for n in TARGET_LENGTHS)
    return World(
        DesignSpace(cells, REPLICATES),
        truth.measure,
        charge,
        targets,
        np.array([target.seq_len for target in targets], dtype=float),
        np.array(
            [[truth.measure(t, (s, 0)).delta_loss for s in HELDOUT_SEQUENCES] for t in targets]
        ),
        COST,
        np.array([truth.mean(target) for target in targets]),
    )
