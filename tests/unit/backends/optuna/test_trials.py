"""Workers that ask at the same time choose one after another."""

from __future__ import annotations

import threading

import optuna
import pytest

from pmlray.backends.optuna import trials as optuna_trials
from tests.unit.backends.optuna.test_sampler import objective, sampler


def chosen_in(study: optuna.Study, found: list[dict[str, int]]) -> threading.Thread:
    """A worker that asks for one run; `found` then holds it."""

    def work() -> None:
        found.append(study.ask(fixed_distributions=distributions).params)

    distributions = study.sampler.distributions  # type: ignore[attr-defined]
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    return worker


def test_who_asked_first_chooses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_trials, "PATIENCE_SECONDS", 1e9)
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    first = study.ask()  # Asked, and nothing suggested yet.
    found: list[dict[str, int]] = []
    worker = chosen_in(study, found)
    worker.join(timeout=0.3)
    assert worker.is_alive() and not found
    objective(first)
    worker.join(timeout=30)
    alone = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    expected = [alone.ask(fixed_distributions=sampler(1e9).distributions).params for _ in range(2)]
    design = {name: first.params[name] for name in expected[0]}
    assert [design, *found] == expected


def test_a_finished_trial_without_a_design_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optuna_trials, "PATIENCE_SECONDS", 1e9)
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    found: list[dict[str, int]] = []
    chosen_in(study, found).join(timeout=30)
    assert len(found) == 1


def test_who_died_before_choosing_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_trials, "PATIENCE_SECONDS", 0.2)
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.ask()
    found: list[dict[str, int]] = []
    chosen_in(study, found).join(timeout=30)
    monkeypatch.setattr(optuna_trials, "PATIENCE_SECONDS", 1e9)
    chosen_in(study, found).join(timeout=30)
    assert len(found) == 2 and found[0] != found[1]


def test_threads_of_one_study_never_repeat_a_run() -> None:
    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.optimize(objective, n_trials=24, n_jobs=4)
    names = optuna_trials.design_params({})
    assert len({tuple(t.params[n] for n in names) for t in study.trials}) == 24
