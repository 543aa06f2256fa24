"""The design against exhaustive search, its budget, and its balance."""

from __future__ import annotations

import numpy as np
import pytest

from pmlray.design import (
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    Knowledge,
    choose_run,
    prior_cost,
)
from pmlray.design.acquisition import variance_reduction
from pmlray.law import LawData, fit_law
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

CELLS = tuple(DesignPoint(r, n, 100) for r in (1, 2, 4, 8) for n in (32, 64, 128, 256))
SPACE = DesignSpace(CELLS, ((0, 0), (1, 0)))
TARGET = (DesignPoint(8, 256, 100),)
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)


def fitted(points: list[DesignPoint]):
    rng = np.random.default_rng(0)
    r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float).T
    delta = TRUE_LAW.predict(r, n, t) + 0.05 * rng.standard_normal(len(points))
    base = np.full(len(points), 12.0)
    data = LawData(r, n, t, delta, base, base - delta, np.arange(len(points)))
    return fit_law(data, "ceiling")


def test_gain_is_the_variance_that_a_refit_would_lose() -> None:
    """Against the definition: invert the information with and without each candidate."""
    known = list(CELLS[::2])
    fit = fitted(known)
    gain = variance_reduction(fit, known, CELLS, TARGET, 12.0)
    scale = np.maximum(np.abs(fit.law.params), 1.0)

    def variance(points: list[DesignPoint]) -> float:
        r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], float).T
        jac = fit.law.jacobian(r, n, t) * scale
        info = jac.T @ jac / max(fit.sigma, 1e-3) ** 2 + 1e-2 * np.eye(len(scale))
        target = TARGET[0]
        g = (
            fit.law.jacobian(
                np.array([8.0]), np.array([256.0]), np.array([float(target.train_steps)])
            )
            * scale
        )
        return float((g @ np.linalg.solve(info, g.T)).item())

    before = variance(known)
    expected = [1 - variance([*known, cell]) / before for cell in CELLS]
    assert gain == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert gain.max() > 2 * gain.min() >= 0


def test_chooses_the_best_gain_per_cost_and_counts_pending() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    fit = fitted(known)
    chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
    settings = DesignSettings(n_initial=6, validation_share=0.0, targets=TARGET)
    first = choose_run(SPACE, settings, Knowledge(chosen, (fit,), 12.0, COST, 1e9))
    assert first is not None
    gain = variance_reduction(fit, known, CELLS, TARGET, 12.0)
    best = CELLS[int(np.argmax(gain / [COST.predict(c) for c in CELLS]))]
    assert first[0] == best
    pending = (*chosen, ChosenRun(*first, done=False))
    second = choose_run(SPACE, settings, Knowledge(pending, (fit,), 12.0, COST, 1e9))
    assert second is not None and second != first


def test_start_spans_the_space_and_replicates_stay_balanced() -> None:
    settings = DesignSettings(n_initial=8, validation_share=0.2, targets=TARGET)
    chosen: tuple[ChosenRun, ...] = ()
    for _ in range(8):
        choice = choose_run(SPACE, settings, Knowledge(chosen, (), 0.0, COST, 1e9))
        assert choice is not None
        chosen = (*chosen, ChosenRun(*choice, done=False))
    assert len({c.point for c in chosen}) == 8
    assert {c.point.lora_rank for c in chosen} >= {1, 8}
    assert {c.point.seq_len for c in chosen} >= {32, 256}
    assert [sum(c.replicate == r for c in chosen) for r in SPACE.replicates] == [4, 4]


def test_nothing_beyond_the_budget_or_the_space() -> None:
    settings = DesignSettings(n_initial=2, validation_share=0.2, targets=TARGET)
    too_little = 0.99 * COST.predict(CELLS[0])
    assert choose_run(SPACE, settings, Knowledge((), (), 0.0, COST, too_little)) is None
    every = tuple(ChosenRun(c, r, True) for c in CELLS for r in SPACE.replicates)
    assert choose_run(SPACE, settings, Knowledge(every, (), 0.0, COST, 1e9)) is None


def test_a_fifth_of_the_runs_fills_space() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
    fit = fitted(known)
    greedy = DesignSettings(6, 0.0, TARGET)
    mixed = DesignSettings(6, 0.2, TARGET)
    differs = 0
    for _ in range(10):
        knowledge = Knowledge(chosen, (fit,), 12.0, COST, 1e9)
        a, b = choose_run(SPACE, greedy, knowledge), choose_run(SPACE, mixed, knowledge)
        assert a is not None and b is not None
        differs += a != b
        chosen = (*chosen, ChosenRun(*b, done=False))
    assert differs == 2


def test_cost_learns_the_measured_rate() -> None:
    prior = prior_cost(32_000_000, 28_000_000, gpu=False, prompt_tokens=16, batch_records=None)
    point = DesignPoint(4, 64, 200)
    learnt = prior.learn([(point, 50.0), (DesignPoint(2, 144, 200), 100.0)])
    assert not prior.measured and learnt.measured
    assert learnt.predict(point) == pytest.approx(150 * (64 + 16) / (64 + 16 + 144 + 16))
    assert prior.learn([]) is prior
