"""The checklist: what it says is what the fit did, and its numbers give the law back."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pmlray.law import (
    CeilingLaw,
    FitOptions,
    Form,
    PowerLaw,
    average_laws,
    least_squares_law,
    law_from_json,
    read_law_data,
)
from pmlray.law.averaging import AveragedLaw
from pmlray.law.checklist import checklist, equation
from pmlray.law.problem import build_problem
from pmlray.law.residuals import residual_structure
from pmlray.law.starts import N_STARTS, grid_starts

ITEMS = {
    *("form", "units", "parameters", "loss", "optimiser", "convergence", "bounds", "points"),
    *("filter", "ranges", "sequences and seeds", "noise", "intervals", "held-out protocol"),
    "weights of the forms",
}
FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")


def of(data, form, **options):
    fit = least_squares_law(data, form, options=FitOptions(**options))
    found = checklist(data, AveragedLaw((fit,), (1.0,)), 123, residual_structure(data, fit))
    assert set(found) == ITEMS and all(found.values())
    return fit, found


@pytest.mark.parametrize("form", FORMS)
def test_the_parameters_give_the_very_law_back(paper_csv, form):
    fit, found = of(read_law_data(paper_csv, 12.4), form)
    numbers = dict(pair.split(" ") for pair in found["parameters"].split(", "))
    stored = {name: float(value) for name, value in numbers.items()}
    assert law_from_json({"form": form, "fits_budget": False, **stored}) == fit.law


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fits_budget", [False, True])
def test_the_equation_is_the_law(paper_csv, form, fits_budget):
    """The written formula, evaluated by Python, against the law's own prediction."""
    fit = least_squares_law(read_law_data(paper_csv, 12.4), form)
    law = replace(fit.law, budget_exponent=0.3, ref_steps=200.0, fits_budget=True)
    if not fits_budget:
        law = fit.law
    stored = law.to_json()
    names = {"C": "coef", "alpha": "rank_exponent", "beta": "len_exponent", "b": "offset",
             "n": "sharpness", "L0": "base_loss", "gamma": "budget_exponent", "t_ref": "ref_steps",
             "drop": "rank_drop", "r_b": "break_rank"}  # fmt: skip
    values = {symbol: stored[name] for symbol, name in names.items() if name in stored}
    values |= {"r": 4.0, "l": 3000.0, "t": 500.0, "exp": np.exp}

    def evaluate(text: str) -> float:
        text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text).replace("^", "**")
        return eval(text.replace("exp * (", "exp("), {}, values)

    written = equation(form, fits_budget).removesuffix(", L0 the base loss")
    final, *inner = written.split(", z = ")
    if inner:
        values["z"] = evaluate(inner[0])
    value = evaluate(final.removeprefix("delta_loss = "))
    assert value == pytest.approx(float(law.predict(4.0, 3000.0, 500.0)))


@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_starts_is_what_the_fit_begins_from(paper_csv, form):
    problem = build_problem(read_law_data(paper_csv, 12.4), form)
    starts = grid_starts(problem, problem.targets(0.0))
    assert len(starts) == N_STARTS[form]
    assert f"{len(starts)} starts" in of(read_law_data(paper_csv, 12.4), form)[1]["optimiser"]


def test_points_are_counted_as_the_fit_used_them(paper_csv):
    data = read_law_data(paper_csv, 12.4)
    saturated = int(np.sum(data.final_loss <= np.log(2)))
    assert saturated > 0
    _, filtered = of(data, "power")
    assert filtered["points"].startswith(f"{70 - saturated} fitted, {saturated} set aside, 0 cens")
    assert "ln 2 are set aside" in filtered["filter"]
    _, censored = of(data, "power", saturated="censor")
    assert censored["points"].startswith(f"{70 - saturated} fitted, 0 set aside, {saturated} cens")
    assert "lower bound" in censored["filter"]
    _, capped = of(data, "ceiling")
    assert capped["points"].startswith("70 fitted, 0 set aside, 0 censored")
    assert capped["filter"].startswith("none")


def test_ranges_clusters_noise_and_bounds(points_of):
    rng = np.random.default_rng(0)
    cluster = np.arange(20) % 4
    noise = 0.3 * rng.standard_normal(4)[cluster] + 0.1 * rng.standard_normal(20)
    data = points_of(PowerLaw(238.0, 0.66, 0.56, -0.38), noise=noise, cluster=cluster)
    fit, found = of(data, "power", loss="huber")
    assert "lora_rank 1 to 16 (5 values); seq_len 1000 to 8000 (4 values)" in found["ranges"]
    assert "train_steps unknown" in found["ranges"]
    assert found["sequences and seeds"] == "4 (sequence, seed) pairs of 20 points"
    assert f"sigma {fit.sigma:.4g}" in found["noise"] and "between" in found["noise"]
    assert "rank_exponent [0, 4], len_exponent [0, 4]" in found["bounds"]
    assert found["loss"].startswith("Huber") and "123 resamples" in found["intervals"]
    assert found["convergence"] == "CONVERGED"


def test_weights_of_all_forms_are_given(points_of):
    data = points_of(CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4), base_loss=12.4, noise=0.01)
    average = average_laws(data, ("power", "ceiling"))
    found = checklist(data, average, 10, residual_structure(data, average.best))
    for form, weight in average.by_form.items():
        assert f"{form} {weight:.3g}" in found["weights of the forms"]
