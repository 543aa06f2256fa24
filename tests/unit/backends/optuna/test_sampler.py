"""LawSampler as any Optuna user would use it, without pmlray around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.trial_index import FIT_ALL, fitted_size
from pmlray.design import Acquisition, CostModel, DesignSettings, DesignSpace
from pmlray.errors import DesignError
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

CELLS = tuple(DesignPoint(r, n, 100) for r in (1, 2, 4, 8) for n in (32, 64, 128, 256))
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)


def objective(trial: optuna.Trial) -> float:
    rank = trial.suggest_int("lora_rank", 1, 8, log=True)
    length = trial.suggest_int("seq_len", 32, 256, log=True)
    steps = trial.suggest_int("train_steps", 100, 100, log=True)
    sequence = trial.suggest_int("sequence_id", 0, 1)
    trial.suggest_int("seed", 0, 0)
    assert DesignPoint(rank, length, steps) in CELLS
    extra = trial.suggest_float("unrelated", 0.0, 1.0)
    assert 0.0 <= extra <= 1.0
    delta = float(TRUE_LAW.predict(rank, length, steps))
    base = 12.0 + 0.01 * sequence
    for name, value in {
        "base_loss": base,
        "final_loss": base - delta,
        "supervised_tokens": length,
        "gpu_seconds": COST.predict(DesignPoint(rank, length, steps)),
    }.items():
        trial.set_user_attr(name, value)
    return delta


def sampler(budget: float, acquisition: Acquisition = "v_optimal") -> LawSampler:
    space = DesignSpace(CELLS, ((0, 0), (1, 0)))
    settings = DesignSettings(4, 0.2, (DesignPoint(8, 256, 100),), acquisition)
    return LawSampler(space, settings, ("power", "ceiling"), COST, budget)


class TestOptunasOwn(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's public tests of any sampler, of objectives that have the design's parameters too:
    those that lack them are refused."""

    @pytest.fixture(autouse=True)
    def with_the_design_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ask, optimize, own = optuna.Study.ask, optuna.Study.optimize, sampler(1e9).distributions

        def ask_too(study: optuna.Study, fixed_distributions: Any = None) -> optuna.Trial:
            return ask(study, fixed_distributions and {**fixed_distributions, **own})

        def optimize_too(study: optuna.Study, func: Any, *args: Any, **kwargs: Any) -> None:
            def both(trial: optuna.Trial) -> Any:
                value = func(trial)
                for suggest in OWN.values():
                    suggest(trial)
                return value

            optimize(study, both, *args, **kwargs)

        monkeypatch.setattr(optuna.Study, "ask", ask_too)
        monkeypatch.setattr(optuna.Study, "optimize", optimize_too)

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: sampler(1e9)


OWN = {
    "lora_rank": lambda t: t.suggest_int("lora_rank", 1, 8, log=True),
    "seq_len": lambda t: t.suggest_int("seq_len", 32, 256, log=True),
    "train_steps": lambda t: t.suggest_int("train_steps", 100, 100, log=True),
    "sequence_id": lambda t: t.suggest_int("sequence_id", 0, 1),
    "seed": lambda t: t.suggest_int("seed", 0, 0),
}
# What an objective suggests in place of one of these, None: nothing; and what is said of it.
WRONG: dict[str, tuple[str, Callable[[optuna.Trial], Any] | None, str]] = {
    "another name": ("lora_rank", lambda t: t.suggest_int("rank", 1, 8), "without lora_rank"),
    "nothing": ("seed", None, 'without seed.*suggest_int\\("seed", 0, 0\\)'),
    "one value": ("lora_rank", lambda t: t.suggest_int("lora_rank", 4, 4), "lora_rank from"),
    "fewer": (
        "seq_len",
        lambda t: t.suggest_int("seq_len", 32, 33, log=True),
        'suggest_int\\("seq_len", 32, 256, log=True\\)',
    ),
    "every second": (
        "sequence_id",
        lambda t: t.suggest_int("sequence_id", 0, 2, step=2),
        'sequence_id from.*suggest_int\\("sequence_id", 0, 1\\)',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_objective_with_other_parameters_is_told_which_are_expected(case: str) -> None:
    name, instead, says = WRONG[case]
    calls = {**OWN, name: instead}

    def wrong(trial: optuna.Trial) -> float:
        for call in calls.values():
            if call is not None:
                call(trial)
        return 1.0

    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    with pytest.raises(DesignError, match=says):
        study.optimize(wrong, n_trials=3)
    assert len(study.trials) == 1


def test_wider_bounds_are_the_same_grid() -> None:
    def wide(trial: optuna.Trial) -> float:
        rank = trial.suggest_int("lora_rank", 1, 64, log=True)
        length = trial.suggest_int("seq_len", 16, 512, log=True)
        for name in ("train_steps", "sequence_id", "seed"):
            OWN[name](trial)
        assert DesignPoint(rank, length, 100) in CELLS
        return float(TRUE_LAW.predict(rank, length, 100))

    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.optimize(wide, n_trials=8)
    assert len({tuple(t.params.values()) for t in study.trials}) == 8


def test_what_another_sampler_fixes_is_refused() -> None:
    fixed = optuna.samplers.PartialFixedSampler({"lora_rank": 4}, sampler(1e9))
    study = optuna.create_study(sampler=fixed, direction="maximize")
    with pytest.raises(DesignError, match="lora_rank cannot be fixed"):
        study.optimize(objective, n_trials=1)


def test_an_objective_that_fails_is_told_its_own_error() -> None:
    def failing(trial: optuna.Trial) -> float:
        raise RuntimeError("no GPU")

    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    with pytest.raises(RuntimeError, match="no GPU"):
        study.optimize(failing, n_trials=1)


def test_lists_are_taken_where_tuples_are() -> None:
    cells = list(CELLS)
    space = DesignSpace(cells, [[0, 0], [1, 0]])  # type: ignore[list-item]
    settings = DesignSettings(4, 0.2, [DesignPoint(8, 256, 100)])
    cells.clear()
    assert space == DesignSpace(CELLS, ((0, 0), (1, 0)))
    study = optuna.create_study(
        sampler=LawSampler(space, settings, ["power", "ceiling"], COST, 1e9), direction="maximize"
    )
    study.optimize(objective, n_trials=8)
    assert len({tuple(t.params.values())[:4] for t in study.trials}) == 8


@pytest.mark.parametrize("acquisition", get_args(Acquisition))
def test_optimize_never_repeats_a_run(acquisition: Acquisition) -> None:
    study = optuna.create_study(sampler=sampler(1e9, acquisition), direction="maximize")
    study.optimize(objective, n_trials=14)
    seen = [tuple(t.params[k] for k in ("lora_rank", "seq_len", "sequence_id"))
            for t in study.trials]  # fmt: skip
    assert len(set(seen)) == len(seen) == 14


def test_running_trials_count_as_taken_and_as_spent() -> None:
    budget = 3.5 * COST.predict(CELLS[0])
    law_sampler = sampler(budget)
    study = optuna.create_study(sampler=law_sampler, direction="maximize")
    asked = []
    while law_sampler.within_budget(study):
        asked.append(study.ask(fixed_distributions=law_sampler.distributions))
    spent = sum(
        COST.predict(DesignPoint(t.params["lora_rank"], t.params["seq_len"], 100)) for t in asked
    )
    assert len(asked) >= 2
    assert spent <= budget
    points = [(t.params["lora_rank"], t.params["seq_len"], t.params["sequence_id"]) for t in asked]
    assert len(set(points)) == len(points)


def test_the_same_history_gives_the_same_choice() -> None:
    choices = []
    for _ in range(2):
        study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
        study.optimize(objective, n_trials=6)
        choices.append([t.params["seq_len"] for t in study.trials])
    assert choices[0] == choices[1]


@pytest.mark.parametrize("state", [optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED])
def test_a_trial_without_a_value_is_not_tried_again(state: optuna.trial.TrialState) -> None:
    law_sampler = sampler(1e9)
    study = optuna.create_study(sampler=law_sampler, direction="maximize")
    first = study.ask(fixed_distributions=law_sampler.distributions)
    study.tell(first, state=state)
    second = study.ask(fixed_distributions=law_sampler.distributions)
    assert first.params != second.params


def test_an_objective_that_only_knows_its_loss() -> None:
    """Without base losses or costs the power form and predicted costs still guide the design."""

    def bare(trial: optuna.Trial) -> float:
        rank = trial.suggest_int("lora_rank", 1, 8, log=True)
        length = trial.suggest_int("seq_len", 32, 256, log=True)
        trial.suggest_int("train_steps", 100, 100, log=True)
        trial.suggest_int("sequence_id", 0, 1)
        trial.suggest_int("seed", 0, 0)
        return 30.0 * rank**0.6 * length**-0.5 - 0.2

    study = optuna.create_study(sampler=sampler(1e9), direction="maximize")
    study.optimize(bare, n_trials=12)
    assert len({tuple(t.params.values()) for t in study.trials}) == 12


def test_a_result_that_is_no_number_is_left_out() -> None:
    law_sampler = sampler(1e9)
    study = optuna.create_study(sampler=law_sampler, direction="maximize")
    study.optimize(objective, n_trials=5)
    trial = study.ask(fixed_distributions=law_sampler.distributions)
    study.tell(trial, float("inf"))
    study.optimize(objective, n_trials=3)
    assert len({tuple(t.params.values())[:4] for t in study.trials}) == 9


@given(st.integers(0, 2000))
def test_laws_that_choose_lack_less_than_a_tenth_of_what_is_known(n: int) -> None:
    size = fitted_size(n)
    assert size == n if n <= FIT_ALL else size <= n < 1.1 * size + 1
    # They stay as they are until then, whenever a search was started.
    assert all(fitted_size(m) == size for m in range(size, n + 1))


def test_a_long_search_fits_its_laws_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from pmlray.backends.optuna import sampler as optuna_sampler

    fitted: list[int] = []
    original = optuna_sampler.law_data_of
    monkeypatch.setattr(
        optuna_sampler,
        "law_data_of",
        lambda trials, at: fitted.append(len(trials)) or original(trials, at),
    )
    cells = tuple(DesignPoint(r, n, 100) for r in (1, 2, 4, 8) for n in (32, 64, 128, 256))
    space = DesignSpace(cells, tuple((s, 0) for s in range(6)))
    settings = DesignSettings(4, 0.2, (DesignPoint(8, 256, 100),))
    own = LawSampler(space, settings, ("power",), COST, 1e9)
    study = optuna.create_study(sampler=own, direction="maximize")
    for i, cell in enumerate(cells * 3):
        law = float(TRUE_LAW.predict(cell.lora_rank, cell.seq_len, 100))
        params = {"lora_rank": cell.lora_rank, "seq_len": cell.seq_len, "train_steps": 100}
        study.add_trial(
            optuna.trial.create_trial(
                value=law,
                params={**params, "sequence_id": i // len(cells), "seed": 0},
                distributions=own.distributions,
                user_attrs={"base_loss": 12.0, "final_loss": 12.0 - law},
            )
        )
    chosen = [study.ask(fixed_distributions=own.distributions).params for _ in range(2)]
    assert chosen[0] != chosen[1] and fitted == [44]
