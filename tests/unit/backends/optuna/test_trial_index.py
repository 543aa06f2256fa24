"""A book of a study's trials, kept up, beside one that reads the study for the first time."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from pmlray.backends.optuna import trial_index
from pmlray.backends.optuna.trial_index import TrialIndex
from pmlray.design import CostModel, DesignState
from pmlray.types import DesignPoint
from tests.unit.backends.optuna.test_sampler import COST, objective, sampler

BUDGET = 1000.0


def nothing(_complete: Sequence[FrozenTrial]) -> tuple[()]:
    return ()


def numbers(known: DesignState) -> tuple[float, ...]:
    cost = known.cost.seconds_per_token
    return cost, known.budget_left, known.training, known.base_loss


def plain_budget(study: optuna.Study, cost: CostModel) -> float:
    """The budget without what ended runs took and open ones are predicted to."""
    left = BUDGET
    for trial in study.trials:
        p = trial.params
        if "seed" not in p:
            continue
        if trial.state.is_finished():
            left -= trial.user_attrs.get("gpu_seconds", 0.0)
        else:
            left -= cost.predict(DesignPoint(p["lora_rank"], p["seq_len"], p["train_steps"]))
    return left


@pytest.mark.parametrize("seed", range(3))
def test_a_book_kept_up_says_what_a_new_one_says(seed: int) -> None:
    rng, space = np.random.default_rng(seed), sampler(1e9).distributions
    plain = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=plain, direction="maximize")
    book, open_ = TrialIndex(COST, BUDGET, nothing), []
    for i in range(28):
        # Every fifth gets its design point later than those that ask after it, or never.
        trial = study.ask(fixed_distributions=space if i % 5 else None)
        open_.append(trial)
        if i > 3 and rng.random() < 0.7:
            ended = open_.pop(int(rng.integers(len(open_))))
            if "seed" not in ended.params and rng.random() < 0.5:
                for name, distribution in space.items():
                    ended._suggest(name, distribution)
            if rng.random() < 0.3:
                study.tell(ended, state=TrialState.FAIL)
            else:
                ended.set_user_attr("gpu_seconds", float(rng.uniform(1, 5)))
                ended.set_user_attr("base_loss", 12.0 + rng.random())
                study.tell(ended, float(rng.normal()))
        known = book.design_state(study, pack_from=5)
        anew = TrialIndex(COST, BUDGET, nothing).design_state(study, pack_from=5)
        assert (known.chosen, known.pack) == (anew.chosen, anew.pack)
        # What ends in another order is added up in another order: the last bits may differ.
        assert numbers(known) == pytest.approx(numbers(anew), rel=1e-12)
        assert known.history.points == [run.point for run in known.chosen]
        assert known.budget_left == pytest.approx(plain_budget(study, known.cost))
        assert book.design_state(study, pack_from=5) is known


def test_a_trial_that_does_not_count_yet_counts_later() -> None:
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.optimize(objective, n_trials=3)
    book = TrialIndex(COST, BUDGET, nothing)
    assert len(book.design_state(study, None, except_number=1).chosen) == 2
    assert len(book.design_state(study, None).chosen) == 3
    # Another study is another book.
    other = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    assert book.design_state(other, None).chosen == ()


def test_each_trial_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = trial_index.point_of
    monkeypatch.setattr(
        trial_index, "point_of", lambda trial: read.append(trial.number) or original(trial)
    )
    study = optuna.create_study(sampler=sampler(1e9, "random"), direction="maximize")
    study.optimize(objective, n_trials=20)
    assert read == list(range(19))


def test_laws_are_fitted_to_the_first_that_were_complete_when_they_were_due() -> None:
    fitted: list[list[int]] = []
    design = sampler(1e9, "random")
    book = TrialIndex(COST, BUDGET, lambda trials: fitted.append([t.number for t in trials]) or ())
    study = optuna.create_study(sampler=design, direction="maximize")

    def add(value: float | None) -> None:
        params = {"lora_rank": 1, "seq_len": 32, "train_steps": 100, "sequence_id": 0, "seed": 0}
        state = TrialState.RUNNING if value is None else TrialState.COMPLETE
        study.add_trial(
            create_trial(
                value=value, state=state, params=params, distributions=design.distributions
            )
        )

    add(None)
    for _ in range(42):
        add(1.0)
    known = book.design_state(study, None)
    assert fitted == [list(range(1, 41))]
    # One that was asked for first and ends late moves no law before the next is due.
    study.tell(0, 1.0)
    assert book.design_state(study, None).chosen[0].done is False and len(known.chosen) == 43
    add(1.0)
    assert book.design_state(study, None).chosen[0].done
    assert fitted[1:] == [list(range(44))]


def test_a_sampler_that_was_pickled_chooses_the_same() -> None:
    """As Ray Tune's OptunaSearch keeps it."""
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.optimize(objective, n_trials=9)
    chosen = []
    for own in (study.sampler, pickle.loads(pickle.dumps(study.sampler))):
        again = optuna.create_study(sampler=own, direction="maximize")
        again.add_trials(study.trials)
        trial = again.ask(fixed_distributions=own.distributions)  # type: ignore[attr-defined]
        chosen.append(trial.params)
    assert chosen[0] == chosen[1]
