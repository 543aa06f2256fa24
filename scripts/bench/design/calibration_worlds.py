"""Designs of few runs, and what is asked of the law that they tell, for calibration.py.

A design is a list of runs; its first 6, 8, 10, ... are the smaller designs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import optuna

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.config.law_options import LawOptions
from pmlray.design import DesignSettings, DesignSpace
from pmlray.law import LawData
from pmlray.types import DesignPoint
from scripts.bench.design.offline import Run, World, run_data
from scripts.bench.design.table_worlds import table_world
from scripts.bench.design.worlds import BASE_LOSS, world

SIZES = (6, 8, 10, 14, 20, 40)
LONG_CONTEXT, PHONEBOOK = "smollm2_long_context", "smollm2_phonebook"
CONTROLLED = "smollm2_phonebook_control"
# Each with the budgets that its designs and targets have: the largest alone, or all.
TABLE_WORLDS = ("long_context_160", "long_context", "phonebook", "phonebook_memorised")
FIRST_RANDOM = 4
# PhoneBook's two largest lengths are a floor: every rank and budget learns the digits' format and
# nothing else there. Of the others, those count whose loss falls by more than that floor. Of
# phonebook_memorised that floor, as a control measured it, is taken from every run, and those cells
# count that memorise this much beside it in the mean of their books.
PHONEBOOK_FLOOR = 1.5
LEAST_MEMORISED = 0.5
LN2 = math.log(2.0)
# A rank-length interaction that no form holds: exp(kappa log(r / 8) log(l / 362)) on the amplitude.
LARGEST_KAPPA = 0.08


@dataclass(frozen=True)
class Asked:
    """Points where the law is asked, each (M,), and what is measured there, nats per token:
    `of_runs`, or else the truth without noise."""

    r: np.ndarray
    length: np.ndarray
    t: np.ndarray
    measured: np.ndarray
    of_runs: bool


def table_designs(name: str, how: str, seed: int) -> dict[int, tuple[LawData, Asked]]:
    """Designs of every size from a shipped table, and its unsaturated held-out runs."""
    table, asked = _table(name)
    if how == "random":
        runs = _random_runs(table, max(SIZES), seed)
    else:
        runs = _chosen_runs(table, max(SIZES), seed)
    return {n: (run_data(table, runs[:n]), asked) for n in SIZES if n <= len(runs)}


def _table(name: str) -> tuple[World, Asked]:
    phonebook, memorised = name == "phonebook", name == "phonebook_memorised"
    if memorised:
        of = table_world(CONTROLLED, 0, without_control=True)
    else:
        of = table_world(PHONEBOOK if phonebook else LONG_CONTEXT, 0)
    every = sorted({*of.space.cells, *of.targets})
    if name == "long_context_160":
        longest = max(c.train_steps for c in every)
        every = [c for c in every if c.train_steps == longest]
    lengths, ranks = sorted({c.seq_len for c in every}), sorted({c.lora_rank for c in every})
    if phonebook:
        # Of the two longest, every rank and budget is a floor.
        lengths = lengths[:-2]
        every = [c for c in every if c.seq_len <= lengths[-1]]
    # The second largest length of random tokens is neither measured nor asked: the question is how
    # the law goes on, not where it lies between.
    below = lengths[-1] if phonebook or memorised else lengths[-2]
    cells = [c for c in every if c.lora_rank < ranks[-1] and c.seq_len < below]
    rows: list[tuple[float, float, float, float]] = []
    for cell in every:
        if cell.seq_len != lengths[-1] and cell.lora_rank != ranks[-1]:
            continue
        runs = [of.measure(cell, pair) for pair in of.space.replicates]
        if memorised and np.mean([run.delta_loss for run in runs]) < LEAST_MEMORISED:
            continue
        for run in runs:
            saturated = run.base_loss - run.delta_loss <= LN2
            if saturated or (phonebook and run.delta_loss < PHONEBOOK_FLOOR):
                continue
            at = (cell.lora_rank, run.supervised_tokens, cell.train_steps)
            rows.append((*map(float, at), run.delta_loss))
    r, length, t, measured = np.array(rows).T
    space = DesignSpace(tuple(cells), of.space.replicates)
    targets = tuple(sorted({DesignPoint(int(a), int(b), int(c)) for a, b, c, _ in rows}))
    table = World(
        space, of.measure, of.charge, targets, of.target_tokens, of.heldout, of.cost, None
    )
    return table, Asked(r, length, t, measured, of_runs=True)


def _random_runs(of: World, n: int, seed: int) -> list[Run]:
    """Distinct cells in a random order, each with a random text; then the same cells again."""
    rng = np.random.default_rng(seed)
    cells, pairs = of.space.cells, of.space.replicates
    runs: list[Run] = []
    for _ in range(len(pairs)):
        runs += [(cells[i], pairs[rng.integers(len(pairs))]) for i in rng.permutation(len(cells))]
    return list(dict.fromkeys(runs))[:n]


def _chosen_runs(of: World, n: int, seed: int) -> list[Run]:
    """Four random runs, then those that `v_optimal` chooses one after another, costs apart."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = DesignSettings(1, 0.2, of.targets, "v_optimal", seed)
    law = LawOptions()
    sampler = LawSampler(of.space, settings, law.forms, of.cost, 1e12, law.fit_options())
    study = optuna.create_study(sampler=sampler, direction="maximize")
    runs = _random_runs(of, FIRST_RANDOM, seed)
    for point, (sequence, seed_) in runs:
        study.enqueue_trial(
            {
                "lora_rank": point.lora_rank,
                "seq_len": point.seq_len,
                "train_steps": point.train_steps,
                "sequence_id": sequence,
                "seed": seed_,
            }
        )
    found: list[Run] = []
    while len(found) < n:
        if len(found) >= FIRST_RANDOM and not sampler.within_budget(study):
            break
        trial = study.ask(fixed_distributions=sampler.distributions)
        p = trial.params
        run = (
            DesignPoint(p["lora_rank"], p["seq_len"], p["train_steps"]),
            (p["sequence_id"], p["seed"]),
        )
        measured = of.measure(*run)
        [charge] = of.charge([run])
        for name, value in {
            "base_loss": measured.base_loss,
            "final_loss": measured.base_loss - measured.delta_loss,
            "supervised_tokens": measured.supervised_tokens,
            "gpu_seconds": charge.gpu_seconds,
            "charged_steps": charge.steps,
        }.items():
            trial.set_user_attr(name, value)
        study.tell(trial, measured.delta_loss)
        found.append(run)
    return found


def synthetic_designs(kind: str, seed: int) -> dict[int, tuple[LawData, Asked]]:
    """Designs of every size from a made-up law, and its truth at larger ranks and lengths."""
    interacts = kind == "interaction"
    made = world("power" if interacts else kind, seed)  # type: ignore[arg-type]
    assert made.truth is not None
    kappa = np.random.default_rng([5, seed]).uniform(-1, 1) * LARGEST_KAPPA * interacts

    def shift(r: np.ndarray, length: np.ndarray, delta: np.ndarray) -> np.ndarray:
        factor = np.exp(kappa * np.log(r / 8.0) * np.log(length / 362.0))
        return np.minimum(delta * factor, BASE_LOSS - 1e-3)

    runs = _random_runs(made, max(SIZES), seed)
    data = run_data(made, runs)
    if interacts:
        delta = shift(data.lora_rank, data.seq_len, data.delta_loss)
        data = LawData(
            data.lora_rank, data.seq_len, data.train_steps, delta, data.base_loss,
            data.base_loss - delta, data.cluster,
        )  # fmt: skip
    r, length, t = np.array(
        [(p.lora_rank, p.seq_len, p.train_steps) for p in made.targets], dtype=float
    ).T
    truth = shift(r, length, made.truth) if interacts else made.truth
    asked = Asked(r, length, t, truth, of_runs=False)
    return {n: (data.subset(np.arange(n)), asked) for n in SIZES}
