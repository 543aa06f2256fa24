"""A law without the runs that more steps would change, against the law that the others follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmlray.study.findings.fitted_runs import fit_observations, fitted_runs
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.report.figures.errors import is_fitted, residual_rows
from pmlray.types import DesignPoint, Observation
from tests.unit.study.conftest import STEPS, TRUE_LAW, make_observation, make_spec

AT = (0, 1, 2, 4, 8, 16, 32, 64, 128, STEPS)
BASE = TRUE_LAW.base_loss


def finished(rank: int, length: int, *, limited: bool) -> Observation:
    """A run of the known law; one that is limited has gone two thirds of the way, at one speed."""
    made = make_observation(DesignPoint(rank, length, STEPS), 0, 0, np.random.default_rng(0))
    delta = float(TRUE_LAW.predict(rank, length, STEPS))
    if limited:
        delta *= 2.0 / 3.0
        curve = [(s, BASE - delta * s / STEPS) for s in AT]
    else:
        curve = [(s, BASE - delta * min(1.0, s / 32.0)) for s in AT]
    key = f"{rank}-{length}-{limited}"
    return replace(made, run_key=key, final_loss=BASE - delta, curve=tuple(curve))


# Large ranks are slowest to fill.
RUNS = tuple(
    finished(rank, length, limited=rank >= 8 and length <= 96)
    for rank in (1, 2, 4, 8, 16)
    for length in (64, 96, 192, 384)
)
LIMITED = {o.run_key for o in RUNS if o.run_key.endswith("True")}


def spec_of(limited: str):
    return make_spec(law={"n_bootstrap": 20, "optimisation_limited": limited})


def test_only_runs_that_are_known_to_be_limited_are_left_out() -> None:
    unknown = replace(RUNS[-1], run_key="unknown", curve=((0, BASE), (STEPS, 3.0)))
    other = replace(RUNS[0], run_key="other", phase="memft")
    runs = (*RUNS, unknown, other)
    assert {o.run_key for o in runs} - {o.run_key for o in fitted_runs(spec_of("keep"), runs)} == {
        "other"
    }
    left = {o.run_key for o in runs} - {o.run_key for o in fitted_runs(spec_of("leave_out"), runs)}
    assert left == LIMITED | {"other"}


def test_without_them_the_law_is_that_of_the_others() -> None:
    both = {name: fit_observations(spec_of(name), RUNS) for name in ("keep", "leave_out")}
    off = {}
    for name, law in both.items():
        assert law is not None
        predicted = law.average.predict([8, 16, 16], [96, 96, 384], STEPS)
        off[name] = np.max(np.abs(predicted - TRUE_LAW.predict([8, 16, 16], [96, 96, 384], STEPS)))
    assert off["leave_out"] < 0.15 < 1.0 < off["keep"]
    assert both["leave_out"] is not None
    assert both["leave_out"].fit.n_obs == len(RUNS) - len(LIMITED)


def test_the_option_leaves_earlier_searches_their_id() -> None:
    plain = make_spec(law={"n_bootstrap": 20})
    assert plain.law.optimisation_limited == "keep"
    assert spec_of("keep").search_id == plain.search_id != spec_of("leave_out").search_id


@pytest.fixture
def result() -> SearchResult:
    return assemble(spec_of("leave_out"), RUNS, (), ())


def test_a_report_shows_which_were_left_out(result: SearchResult) -> None:
    assert result.to_json()["n_left_out"] == len(LIMITED)
    roles = [row["role"] for row in residual_rows(result) if not is_fitted(row)]
    assert roles == ["left out: optimisation-limited"] * len(LIMITED)
