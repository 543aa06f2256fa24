"""The study mirrors what was measured, and leaves out what was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pmlray.backends.optuna.sampler import LawSampler
from pmlray.backends.optuna.study import JOURNAL, OptunaPoints
from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import CostModel
from pmlray.study.search.plan import design_settings, design_space
from tests.fakes import observe


def test_trials_hold_the_control_where_it_was_measured(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    spec = search.spec
    cost = CostModel(1e-3, prompt_tokens=0, batch_records=None)
    sampler = LawSampler(design_space(search), design_settings(search), spec.law.forms, cost, 120)
    known = [
        observe(search.plan_run(p, "sft", 0, 0, "law"), 0, i, 0.02, 1e-3)
        for i, p in enumerate(spec.space.points()[:2])
    ]
    known[1] = replace(known[1], control_delta_loss=None)
    points = OptunaPoints(search, sampler, tmp_path, known, [])
    (asked,) = points.ask(1)
    told = observe(asked, 1, 0, 0.02, 1e-3)
    points.tell(told)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    study = optuna.load_study(study_name=spec.search_id, storage=storage)
    found = [t.user_attrs.get("control_delta_loss") for t in study.trials]
    assert found == [known[0].control_delta_loss, None, told.control_delta_loss]
    # What dashboards draw: the objective by its name, and delta_loss as it grew.
    assert study.metric_names == ["delta_loss"] and study.user_attrs["task"] == spec.task.kind
    for trial, o in zip(study.trials, (*known, told), strict=True):
        assert trial.value == o.delta_loss
        grown = [trial.intermediate_values[step] for step, _ in o.curve]
        assert grown == [o.base_loss - loss for _, loss in o.curve]
        assert grown[0] == 0.0 and grown[-1] == trial.value
