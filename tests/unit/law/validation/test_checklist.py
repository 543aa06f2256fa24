"""The checklist: what it says is what the fit did, and its numbers give the law back."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pmlray.law import (
    CeilingLaw,
    FitOptions,
    Form,
    PowerLaw,
    average_laws,
    law_from_json,
    read_law_data,
)
from pmlray.law.fitting.form_model import FormModel
from pmlray.law.forms.drift import Drift
from pmlray.law.forms.registry import blank_law
from pmlray.law.validation.checklist import checklist, equation
from pmlray.law.validation.residuals import residual_structure

ITEMS = {
    *("form", "units", "parameters", "loss", "optimiser", "convergence", "bounds", "points"),
    *("filter", "ranges", "sequences and seeds", "noise", "prior", "intervals"),
    *("held-out protocol", "weights of the forms"),
}
FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")


def of(data, form, **options):
    average = average_laws(data, (form,), FitOptions(**options))
    fit = average.best
    found = checklist(data, average, 123, residual_structure(data, fit))
    assert set(found) == ITEMS and all(found.values())
    return fit, found


@pytest.mark.parametrize("form", FORMS)
def test_the_parameters_give_the_very_law_back(paper_csv, form):
    fit, found = of(read_law_data(paper_csv, 12.4), form)
    pairs = [pair.rsplit(" ", 1) for pair in found["parameters"].split(", ")]
    stored: dict[str, object] = {name: float(value) for name, value in pairs}
    names = ("rank_drift", "rank_len_drift", "len_drift")
    names += ("rank_above", "rank_below", "len_above", "len_below")
    drift: dict[str, object] = {"coefs": [stored.pop(name) for name in names], "log_steps": 0.0}
    drift |= {end: [stored.pop(f"{axis}_{end}") for axis in "uv"] for end in ("low", "high")}
    drift |= {"log_rank": stored.pop("log r_mid"), "log_len": stored.pop("log l_mid")}
    law = law_from_json({"form": form, "fits_budget": False, "drift": drift, **stored})
    assert law == fit.law


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fits_budget", [False, True])
def test_the_equation_is_the_law(form, fits_budget):
    """The written formula, evaluated by Python, against the law's own prediction."""
    curves, axes = (6, 3) if fits_budget else (3, 2)
    coefs = (0.05, -0.1, 0.08, 0.02, -0.03, 0.04)[:curves]
    coefs += (0.2, -0.3, 0.15, 0.1, -0.2, 0.25)[: 2 * axes]
    low, high = (-0.1, -0.5, -0.4), (1.0, 0.5, 0.3)
    middle = (np.log(5.0), np.log(2500.0), np.log(300.0))
    drift = Drift(*middle, low[:axes], high[:axes], coefs)
    law = blank_law(form, 12.4, 200.0, fits_budget, drift)
    own = {"ceiling": [1.5], "broken": [0.2, 2.0]}.get(form, [])
    budget = [0.3] if fits_budget else []
    law = law.with_params([5.5, 0.7, 0.6, 0.4, *budget, *coefs, *own])
    stored = law.to_json()
    names = {"C": "coef", "alpha": "rank_exponent", "beta": "len_exponent", "b": "offset",
             "n": "sharpness", "L0": "base_loss", "gamma": "budget_exponent", "t_ref": "ref_steps",
             "drop": "rank_drop", "r_b": "break_rank"}  # fmt: skip
    values = {symbol: stored[name] for symbol, name in names.items() if name in stored}
    values |= {"r": 4.0, "l": 3000.0, "t": 500.0, "exp": np.exp, "log": np.log, "clip": np.clip}
    values |= {f"{u}_low": end for u, end in zip("uvs", low, strict=True)}
    values |= {f"{u}_high": end for u, end in zip("uvs", high, strict=True)}
    values |= {"r_mid": 5.0, "l_mid": 2500.0, "t_mid": 300.0}
    values |= {f"d{i}": coef for i, coef in enumerate(coefs, start=1)}

    def evaluate(text: str) -> float:
        text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text).replace("^", "**")
        return eval(re.sub(r"(exp|log|max|min|clip) \* \(", r"\1(", text), {}, values)

    written = equation(form, fits_budget).replace(", L0 the base loss", "")
    written, *where = written.split("; ")
    # What a line needs stands behind it, but for how the drift's axes begin.
    parts = [*written.split(", "), where[0], *where[:0:-1]]
    for part in reversed(parts):
        name, value = part.split(" = ")
        values[name] = evaluate(value)
    assert values["delta_loss"] == pytest.approx(float(law.predict(4.0, 3000.0, 500.0)))


def test_starts_and_sizes_of_the_noise_are_as_many_as_told(paper_csv, monkeypatch):
    solved: list[int] = []
    solve = FormModel.solve

    def counting(self, start_BP, *args):
        solved.append(len(start_BP))
        return solve(self, start_BP, *args)

    monkeypatch.setattr(FormModel, "solve", counting)
    _, found = of(read_law_data(paper_csv, 12.4), "ceiling")
    starts, sizes = re.findall(r"from (\d+) starts at each of (\d+) sizes", found["optimiser"])[0]
    # The second pass begins where the first ended.
    assert solved == [int(starts) * int(sizes), int(sizes)]


def test_the_prior_that_is_told_is_that_of_the_fit(paper_csv):
    data = read_law_data(paper_csv, 12.4)
    model = average_laws(data, ("ceiling",)).posteriors[0].model
    _, found = of(data, "ceiling")
    told = dict(re.findall(r"(\w+),? N\(([^)]*)\)", found["prior"]))
    for name, at in (("rank_exponent", 1), ("len_exponent", 2)):
        assert told[name] == f"{model.mean_P[at]:g}, {model.sd_P[at]:g}^2"
    assert told["loss"] == f"{model.mean_P[3] / 12.4:g}, {model.sd_P[3] / 12.4:g}^2"
    assert told["drift"] == f"0, {model.sd_P[4]:g}^2"
    assert told["points"] == f"0, {model.sd_P[7]:g}^2"


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
    assert f"is {fit.sigma:.3g} of its loss reduction" in found["noise"]
    assert f"at least {fit.noise.floor:.3g} nats" in found["noise"] and "between" in found["noise"]
    assert "rank_exponent [0, 4], len_exponent [0, 4]" in found["bounds"]
    assert "(Huber)" in found["loss"] and "123 samples" in found["intervals"]
    assert "(Huber)" not in of(data, "power")[1]["loss"]
    assert found["convergence"] == "CONVERGED"


def test_weights_of_all_forms_are_given(points_of):
    data = points_of(CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4), base_loss=12.4, noise=0.01)
    average = average_laws(data, ("power", "ceiling"))
    found = checklist(data, average, 10, residual_structure(data, average.best))
    for form, weight in average.by_form.items():
        assert f"{form} {weight:.3g}" in found["weights of the forms"]
