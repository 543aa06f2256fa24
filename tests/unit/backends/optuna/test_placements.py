"""Optuna studies whose trials also choose a placement."""

from __future__ import annotations

import time

import numpy as np
import optuna
import pytest

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.trials import law_data_of
from pmlray.design import Acquisition, CostModel, DesignSettings, DesignSpace, PlaceWork
from pmlray.law import Placement, Site
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

PLACEMENTS = {
    "block": Placement("block", (Site("mlp_block", 0.7, 1152.0),)),
    "down": Placement("down", (Site("mlp_out", 0.7, 2112.0),)),
    "heads": Placement("heads", (Site("attention", 0.7, 1920.0),)),
    "late": Placement("late", tuple(Site("attention", i / 29, 1920.0) for i in range(20, 30))),
}
WORTHS = {"block": 1.0, "down": 0.7, "heads": 1.4, "late": 1.1}
WORKS = {
    name: PlaceWork(1.0, 0.0, layer)
    for name, layer in {"block": 21, "down": 21, "heads": 20, "late": 20}.items()
}
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None, decay_share=0.2, places=WORKS)


def space(ranks: tuple[int, ...], lengths: tuple[int, ...], steps: tuple[int, ...]) -> DesignSpace:
    cells = tuple(
        DesignPoint(r, n, t, name)
        for name in PLACEMENTS for r in ranks for n in lengths for t in steps
    )  # fmt: skip
    replicates = tuple((sequence, seed) for seed in range(2) for sequence in range(3))
    return DesignSpace(cells, replicates, PLACEMENTS)


SMALL = space((1, 2, 4), (32, 64), (100,))
TARGETS = tuple(DesignPoint(8, 128, 100, name) for name in PLACEMENTS)


def sampler_of(rule: Acquisition = "v_optimal", of: DesignSpace = SMALL) -> LawSampler:
    settings = DesignSettings(4, 0.2, TARGETS, rule)
    return LawSampler(of, settings, ("ceiling",), COST, budget=1e9)


def delta_of(point: DesignPoint, rng: np.random.Generator) -> float:
    name = str(point.placement)
    rank = point.lora_rank * PLACEMENTS[name].params_per_rank / 1152.0 * WORTHS[name]
    law = float(TRUE_LAW.predict(rank, point.seq_len, point.train_steps))
    return min(law + 0.05 * float(rng.standard_normal()), 12.0)


@pytest.mark.parametrize("rule", ["v_optimal", "tpe", "sobol"])
def test_plain_optimize_chooses_placements_and_repeats_no_run(rule: Acquisition) -> None:
    sampler, rng = sampler_of(rule), np.random.default_rng(0)

    def objective(trial: optuna.Trial) -> float:
        # In any order: a trial has its point once all of it is suggested.
        place = trial.suggest_categorical("placement", tuple(PLACEMENTS))
        sizes = {
            name: trial.suggest_int(name, d.low, d.high, log=d.log)  # type: ignore[attr-defined]
            for name, d in sampler.distributions.items()
            if name != "placement"
        }
        point = DesignPoint(sizes["lora_rank"], sizes["seq_len"], sizes["train_steps"], str(place))
        assert point in SMALL.cells
        delta = delta_of(point, rng)
        trial.set_user_attr("base_loss", 12.0)
        trial.set_user_attr("final_loss", 12.0 - delta)
        trial.set_user_attr("gpu_seconds", COST.predict(point))
        return delta

    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.optimize(objective, n_trials=14)
    assert len({tuple(sorted(t.params.items())) for t in study.trials}) == 14
    chosen = [t.params["placement"] for t in study.trials]
    if rule != "tpe":
        assert set(chosen[:4] if rule == "v_optimal" else chosen) == set(PLACEMENTS)
    # The law has every placement, with points or not, and each trial's own.
    data = law_data_of(study.trials[:3], PLACEMENTS)
    assert {p.name for p in data.placements} == set(PLACEMENTS)
    assert data.placement is not None
    assert [data.placements[i].name for i in data.placement] == chosen[:3]


def test_without_placements_the_parameters_are_those_of_before() -> None:
    cells = tuple(DesignPoint(r, n, 100) for r in (1, 4) for n in (32, 64))
    settings = DesignSettings(2, 0.0, cells[-1:])
    plain = LawSampler(DesignSpace(cells, ((0, 0),)), settings, ("ceiling",), COST, 1e9)
    names = ["lora_rank", "seq_len", "train_steps", "sequence_id", "seed"]
    assert list(plain.distributions) == names
    assert list(sampler_of().distributions) == [*names, "placement"]


def test_a_pack_of_8_from_1000_candidates_at_placements_is_chosen_in_200_ms() -> None:
    """Two packs' kinds of placements, 40 runs finished, all scales of the forms' worths."""
    large = space((1, 2, 4, 8, 16), (16, 32, 48, 64, 80, 96, 112, 128, 144, 160), (25, 50, 100, 200,
                  400))  # fmt: skip
    assert len(large.cells) == 1000
    settings = DesignSettings(6, 0.2, TARGETS)
    forms = ("ceiling", "exponential_ceiling")
    sampler = LawSampler(large, settings, forms, COST, budget=1e9)
    study, rng = (
        optuna.create_study(sampler=sampler, direction="maximize"),
        np.random.default_rng(0),
    )
    for i in range(40):
        cell = large.cells[rng.integers(1000)]
        sequence, seed = large.replicates[i % 6]
        delta = delta_of(cell, rng)
        study.add_trial(
            optuna.trial.create_trial(
                value=delta,
                params={**cell.to_json(), "sequence_id": sequence, "seed": seed},
                distributions=sampler.distributions,
                user_attrs={
                    "base_loss": 12.0,
                    "final_loss": 12.0 - delta,
                    "supervised_tokens": cell.seq_len,
                    "gpu_seconds": COST.predict(cell),
                },
            )
        )
    started = time.process_time()
    assert sampler.within_budget(study)
    assert time.process_time() - started < 1.0  # The law is fitted by now.
    seconds = []
    for _ in range(3):
        sampler.begin_pack(study)
        # This process's own time, of the best of three: others may be using the machine.
        started = time.process_time()
        pack = []
        for _ in range(8):
            assert sampler.within_budget(study)
            pack.append(study.ask(fixed_distributions=sampler.distributions))
        seconds.append(time.process_time() - started)
        kinds = {WORKS[t.params["placement"]].first_layer for t in pack}
        assert len(kinds) == 1
        for trial in pack:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert min(seconds) < 0.2
