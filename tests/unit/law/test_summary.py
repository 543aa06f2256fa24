"""The choice of the forms, what is predicted of them together, and the summary a search stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pmlray.law import (
    CeilingLaw,
    LawSummary,
    PowerLaw,
    average_laws,
    fit_law,
    law_from_json,
    mape,
    r2,
    read_law_data,
)
from pmlray.types import DesignPoint
from tests.unit.law.conftest import PointsOf

POWER = PowerLaw(238.0, 0.66, 0.56, -0.38)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
TARGET = DesignPoint(64, 8000, 2000)


@pytest.fixture(scope="module")
def paper(paper_csv: Path) -> LawSummary:
    return fit_law(read_law_data(paper_csv, 12.4), targets=[TARGET])


def test_auto_takes_the_ceiling_for_the_papers_points(paper: LawSummary, paper_csv: Path) -> None:
    assert paper.fit.law.form == "ceiling" and paper.weights["ceiling"] > 0.99
    assert paper.extrapolation_mape is not None and paper.heldout_mape is not None
    assert paper.extrapolation_mape < 0.025 and paper.heldout_mape < 0.015
    # No ceiling without a base loss.
    assert fit_law(read_law_data(paper_csv)).fit.law.form == "power"
    assert set(paper.weights) == {"ceiling", "exponential_ceiling"}


def test_auto_takes_the_power_law_where_it_is_true(points_of: PointsOf) -> None:
    # Points near the base loss that do not bend: only a cap of infinite sharpness could mimic it.
    law = PowerLaw(22.0, 0.5, 0.4, 0.0)
    noise = 0.01 * np.random.default_rng(0).standard_normal(20)
    data = points_of(law, base_loss=7.0, noise=noise)
    assert np.max(data.delta_loss) < 7.0 - np.log(2)
    forms = ("power", "ceiling", "exponential_ceiling")
    assert fit_law(data, forms=forms).fit.law.form == "power"  # type: ignore[arg-type]


def test_saturated_points_alone_tell_the_ceiling_and_nothing_else(points_of: PointsOf) -> None:
    data = points_of(CeilingLaw(1e6, 1.0, 0.5, 0.0, 8.0, 12.0), base_loss=12.0)
    summary = fit_law(data, targets=[DesignPoint(8, 2000, 0)])
    assert summary.targets[0].delta_loss == pytest.approx(12.0, rel=0.01)
    assert str(summary.fit.status) == "UNDERDETERMINED" and summary.known_interval is None
    assert "0 distinct (r, l, t) that are not saturated" in summary.fit.message
    # How far the law is from saturated elsewhere is anyone's guess.
    low, high = summary.average_samples.interval(1, 512_000, 0)
    assert high - low > 0.2 * 12.0


def test_the_summary_is_plain_json_with_the_agreed_keys(paper: LawSummary, paper_csv: Path) -> None:
    data = read_law_data(paper_csv, 12.4)
    stored = json.loads(json.dumps(paper.to_json(), allow_nan=False))
    fit = average_laws(data).best
    assert stored["form"] == "ceiling" and law_from_json(
        {name: stored[name] for name in ("form", *fit.law.to_json())}
    ) == fit.law  # fmt: skip
    low, high = stored["intervals"]["sharpness"]
    assert low < 6.5 < high
    assert (stored["base_loss"], stored["budget_exponent"]) == (12.4, 0.0)
    assert (stored["r2"], stored["mape"]) == (r2(data, fit), mape(data, fit))
    assert (stored["n_obs"], stored["n_censored"]) == (70, 0)
    assert (stored["status"], stored["message"]) == ("CONVERGED", "")
    for name, found in (("heldout", paper.heldout), ("extrapolation", paper.extrapolation)):
        assert found is not None and 0 <= found.low < found.error < found.high
        assert stored["unseen"][name]["error"] == stored[f"{name}_mape"] == found.error
        assert stored["unseen"][name]["n_cells"] == found.n_cells
    assert stored["unseen"]["new_sequence"] is None is stored["sequence_mape"]
    assert stored["weights"] == dict(paper.weights)
    for name in ("coef", "rank_exponent", "len_exponent", "offset"):
        assert stored["intervals"][name][0] < stored[name] < stored["intervals"][name][1]
    assert not any("drift" in name for name in stored["intervals"])
    [t] = stored["targets"]
    assert (t["lora_rank"], t["seq_len"], t["train_steps"]) == (64, 8000, 2000)
    assert t["run_low"] < t["low"] < t["delta_loss"] < t["high"]
    # The base loss of the texts on average is itself known to about 1 %.
    assert t["high"] <= 1.01 * stored["base_loss"]
    drawn = paper.average_samples.predict(64, 8000, 2000)
    assert t["delta_loss"] == pytest.approx(float(np.median(drawn)))
    assert [t["low"], t["high"]] == pytest.approx(np.quantile(drawn, [0.05, 0.95]).tolist())
    expected = (t["high"] - t["low"]) / 2 / t["delta_loss"]
    assert stored["relative_interval"] == pytest.approx(expected)


def test_the_same_points_give_the_same_summary(paper: LawSummary, paper_csv: Path) -> None:
    again = fit_law(read_law_data(paper_csv, 12.4), targets=[TARGET])
    assert again.to_json() == paper.to_json()


def test_the_widest_target_counts(paper_csv: Path) -> None:
    data = read_law_data(paper_csv)
    near, far = DesignPoint(8, 4000, 0), DesignPoint(1, 32000, 0)

    def relative(*targets: DesignPoint) -> float:
        return fit_law(data, "power", targets=targets).relative_interval or 0.0

    assert fit_law(data, "power").relative_interval is None
    assert 0 < relative(near) < relative(far) == pytest.approx(relative(near, far))


def test_the_headline_is_the_held_out_extrapolation_error(
    paper: LawSummary, points_of: PointsOf
) -> None:
    found = paper.extrapolation
    assert found is not None
    said = f"off by {100 * found.error:.3g}% [{100 * found.low:.3g}, {100 * found.high:.3g}]"
    assert said in paper.headline and f"{found.n_cells} cells" in paper.headline
    assert next(iter(paper.to_json())) == "headline"
    # Fitted to one rank it may describe its points as it likes.
    lengths = (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
    weak = fit_law(points_of(POWER, (4.0,), lengths, noise=0.01))
    assert weak.heldout_mape is not None and "%" not in weak.headline
    assert "leave the law open" in weak.headline


def test_a_sequence_never_seen_has_its_own_error(points_of: PointsOf) -> None:
    rng = np.random.default_rng(4)
    cluster = rng.permutation(np.arange(20) % 4)
    # Sequences that differ by far more than runs of one of them.
    noise = 0.5 * np.array([-1.0, -0.4, 0.4, 1.0])[cluster] + 0.01 * rng.standard_normal(20)
    summary = fit_law(points_of(POWER, noise=noise, cluster=cluster), "power", rng=rng)
    assert summary.sequence_mape is not None and summary.heldout_mape is not None
    assert summary.sequence_mape > summary.heldout_mape
    stored = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert stored["sequence_mape"] == summary.sequence_mape
    assert stored["residuals"]["spread"]["between"] > stored["residuals"]["spread"]["within"]


def test_sizes_at_the_targets_bring_the_loss_down_to_ln_2(
    paper: LawSummary, paper_csv: Path
) -> None:
    [size] = paper.sizes()
    wanted = 12.4 - np.log(2)
    assert size.delta_loss == pytest.approx(wanted)
    for at, low, value, high in (
        ((size.lora_rank.value, 8000, 0), size.lora_rank.low, size.lora_rank.value,
         size.lora_rank.high),
        ((64, size.seq_len.value, 0), size.seq_len.low, size.seq_len.value, size.seq_len.high),
    ):  # fmt: skip
        assert low < value < high
        assert np.median(paper.average_samples.predict(*at)) == pytest.approx(wanted, abs=0.01)
    [stored] = paper.to_json(delta_loss=4.0)["sizes"]
    told = paper.average.predict(stored["lora_rank"]["value"], 8000, 0)
    assert float(told) == pytest.approx(4.0, rel=0.01)
    [bits] = [t["stored_bits"] for t in paper.to_json()["targets"]]
    assert bits == pytest.approx(8000 * paper.targets[0].delta_loss / np.log(2))
    # Neither what to size for nor where is known.
    of_power = fit_law(read_law_data(paper_csv), "power", targets=[TARGET])
    assert of_power.sizes() == () and len(of_power.sizes(4.0)) == 1
    assert fit_law(read_law_data(paper_csv, 12.4), "ceiling").sizes(4.0) == ()


def test_without_a_base_loss_nothing_is_predicted_above_the_largest_measured(
    points_of: PointsOf,
) -> None:
    data = points_of(POWER, noise=0.02)
    largest = float(data.delta_loss.max())
    far, near = DesignPoint(256, 500, 0), DesignPoint(4, 4000, 0)
    summary = fit_law(data, targets=[far, near])
    assert float(POWER.predict(256, 500, 0)) > 2 * largest
    assert summary.targets[0].high <= largest and summary.targets[0].delta_loss <= largest
    assert float(summary.average.predict(256, 500, 0)) == pytest.approx(largest)
    assert summary.targets[1].delta_loss == pytest.approx(float(POWER.predict(4, 4000, 0)), rel=0.1)
    # No rank is named that would reach more.
    assert summary.sizes(1.1 * largest)[0].to_json()["lora_rank"]["low"] is None
    said = summary.limits[0]
    assert f"above the largest delta_loss measured, {largest:.4g} nats" in said
    assert "--base-loss" in said and summary.to_json()["limits"] == list(summary.limits)
    with_base = points_of(POWER, base_loss=40.0, noise=0.02)
    assert not any("base loss" in x for x in fit_law(with_base, targets=[near]).limits)


def test_both_forms_speak_for_what_neither_is_sure_of(points_of: PointsOf) -> None:
    """The law of total variance: an average's spread holds its forms' and their disagreement."""
    data = points_of(CEILING, (1.0, 2.0, 4.0), (2000.0, 4000.0, 8000.0), base_loss=12.4)
    average = average_laws(data)
    assert min(average.weights) > 0.05
    at, n = (8.0, 3000.0, 0.0), 2000
    drawn = average.sample(n, np.random.default_rng(0))
    counts = {part.fit.law.form: part.sigma.size for part in drawn.parts}
    for form, weight in average.by_form.items():
        # Binomial: three standard errors.
        assert abs(counts[form] / n - weight) < 3 * np.sqrt(weight * (1 - weight) / n)
    told = [float(fit.law.predict(*at)) for fit in average.fits]
    expected = sum(w * min(x, 12.4) for w, x in zip(average.weights, told, strict=True))
    assert float(average.predict(*at)) == pytest.approx(expected)
    assert abs(told[0] - told[1]) > 0.05
    alone = [
        average_laws(data, (fit.law.form,)).sample(n, np.random.default_rng(1)).predict(*at)
        for fit in average.fits
    ]
    within = sum(w * x.var() for w, x in zip(average.weights, alone, strict=True))
    middle = sum(w * x.mean() for w, x in zip(average.weights, alone, strict=True))
    between = sum(w * (x.mean() - middle) ** 2 for w, x in zip(average.weights, alone, strict=True))
    assert drawn.predict(*at).var() == pytest.approx(within + between, rel=0.2)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_early_data_can_be_summarised(points_of: PointsOf, n: int) -> None:
    data = points_of(CEILING, base_loss=12.4).subset(np.array([0, 18, 7, 13, 2, 16])[:n])
    summary = fit_law(data, targets=[DesignPoint(16, 8000, 0)])
    json.dumps(summary.to_json(), allow_nan=False)
    assert str(summary.fit.status) == "UNDERDETERMINED" and summary.known_interval is None
    [target] = summary.targets
    truth = float(CEILING.predict(16, 8000, 0))
    assert target.low < truth < target.high and target.relative_half_width > 0.15
