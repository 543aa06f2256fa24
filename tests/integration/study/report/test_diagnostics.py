"""The report's residuals, checklist and bits against the law and the runs themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pmlray.config.bases.models import KNOWN_MODELS, TINY
from pmlray.study.findings.placed_law import params_per_rank
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.report.capacity import (
    capacities,
    capacity_json,
    capacity_panels,
    capacity_table,
    capacity_text,
)
from pmlray.study.report.first_screen import law_words
from pmlray.study.report.headline import headline
from pmlray.study.report.residuals import (
    residual_panels,
    residual_tables,
    residuals_text,
    sizes_table,
)
from pmlray.study.report.search_report import report_json
from pmlray.study.report.settings import settings_list
from pmlray.study.report.tables import number, percent
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.conftest import MakeResult, make_spec


def test_residuals_are_drawn_with_their_sign(result: SearchResult) -> None:
    law = law_of(result).fit.law
    expected = sorted(
        o.delta_loss
        - float(law.predict(o.point.lora_rank, o.supervised_tokens, o.point.train_steps))
        for o in result.law_observations
    )
    for panel in residual_panels(result):
        rows = next(rows for rows in rows_of(panel.spec()) if "residual" in rows[0])
        assert sorted(row["residual"] for row in rows) == pytest.approx(expected, abs=1e-4)
    by_sequence = next(p for p in residual_panels(result) if p.key == "residuals-by-sequence")
    rows = next(rows for rows in rows_of(by_sequence.spec()) if "residual" in rows[0])
    assert {row["pair"] for row in rows} == {"0, 0", "1, 0"}


def test_tables_say_what_the_summary_found(result: SearchResult) -> None:
    law = law_of(result)
    trends, errors, correlations = residual_tables(law)
    assert [row[0] for row in trends.rows] == ["lora_rank", "seq_len", "predicted"]
    assert [row[3] for row in trends.rows] == [t.p_value for t in law.residuals.trends]
    shown = dict(errors.rows)
    assert shown["each sequence with its seed"] == percent(law.sequence_mape) != "–"
    spread = law.residuals.spread
    assert spread is not None
    assert shown["noise within a sequence, nats per token"] == number(spread.within)
    cov = law.fit.cov
    i, j = 1, 2
    assert correlations.rows[i][j + 1] == pytest.approx(
        cov[i, j] / math.sqrt(cov[i, i] * cov[j, j])
    )
    assert "structure" in residuals_text(law) or "follow" in residuals_text(law)
    sizes = sizes_table(result.sizes)
    assert sizes.rows[0][4] == "lora_rank needed"
    assert len(sizes.rows) == 2 * len(law.targets)  # Steps do not differ.


def test_the_checklist_says_which_runs_computed_the_base_in_another_dtype(
    make_result: MakeResult,
) -> None:
    result = make_result(model={"id": TINY, "dtype": "bfloat16"})

    def row(*computed_in: str) -> str:
        runs = tuple(
            replace(o, provenance={**o.provenance, "base_computed_in": dtype})
            for o, dtype in zip(result.observations, computed_in, strict=False)
        )
        mixed = replace(result, observations=(*runs, *result.observations[len(runs) :]))
        return dict(settings_list(mixed, {}))["dtype of the base"]

    said = "bfloat16, computed in float32 in 2 of {} runs (adapters and optimiser state: float32)"
    assert row("float32", "bfloat16", "float32") == said.format(len(result.observations))
    plain = "bfloat16 (adapters and optimiser state: float32)"
    assert row() == row("bfloat16", "bfloat16") == plain


def test_bits_are_counted_run_by_run(result: SearchResult) -> None:
    hidden = KNOWN_MODELS[TINY].hidden
    found = capacities(result)
    assert [c.run.run_key for c in found] == [o.run_key for o in result.law_observations]
    for c, stored in zip(found, capacity_json(found), strict=True):
        bits = c.run.supervised_tokens * c.run.delta_loss / math.log(2)
        assert stored["stored_bits"] == pytest.approx(bits)
        # The paper's placement: A and B between the hidden width and itself.
        per_param = bits / (2 * hidden * c.run.point.lora_rank)
        assert stored["bits_per_param"] == pytest.approx(per_param)
        assert stored["learnt_bits"] is None and stored["entropy_share"] is None
    assert "upper bounds" in capacity_text(found)
    densest = max(s["bits_per_param"] for s in capacity_json(found))
    assert f"holds {number(densest, 3)} bits an adapter parameter" in capacity_text(found)
    assert report_json(result, {})["capacity"] == capacity_json(found)


def test_a_control_takes_what_was_learnt_off(result: SearchResult) -> None:
    first, *others = result.law_observations
    scored = replace(first, control_delta_loss=0.25 * first.delta_loss)
    found = capacities(replace(result, observations=(scored, *others)))
    total = first.supervised_tokens * first.delta_loss / math.log(2)
    assert found[0].bits.verbatim == pytest.approx(0.75 * total)
    assert found[0].bits.per_param == pytest.approx(0.75 * total / (found[0].n_params or 0))
    assert [c.controlled for c in found] == [True] + [False] * len(others)
    worse = tuple(replace(o, control_delta_loss=-0.1) for o in result.law_observations)
    everywhere = capacities(replace(result, observations=worse))
    assert all(c.bits.verbatim == c.bits.total and c.controlled for c in everywhere)
    assert "upper bounds" not in capacity_text(everywhere)
    assert "made fresh text less likely" in capacity_text(everywhere)


def test_a_phonebook_is_held_against_its_entropy(result: SearchResult) -> None:
    o = result.law_observations[0]
    book = replace(o, task="phonebook", provenance={**o.provenance, "n_records": 4})
    found = capacities(replace(result, observations=(book,)))
    entropy = 4 * math.log2(4 * 10**9)
    assert found[0].bits.share == pytest.approx(found[0].bits.total / entropy)
    assert percent(found[0].bits.share) in capacity_table(found).rows[0]
    # Without the number of records nothing is made up.
    [unknown] = capacities(replace(result, observations=(replace(o, task="phonebook"),)))
    assert unknown.bits.share is None


def test_parameters_come_from_the_run_then_the_known_base_then_nowhere(
    result: SearchResult,
) -> None:
    o = result.law_observations[0]
    recorded = replace(o, provenance={**o.provenance, "adapter_params_per_rank": 999})
    assert params_per_rank(result.spec, recorded) == 999
    down = make_spec(probe={"layer": 1, "placement": "down_proj"})
    geometry = KNOWN_MODELS[TINY]
    assert params_per_rank(down, o) == geometry.intermediate + geometry.hidden
    many = make_spec(adapter={"target_modules": ("q_proj",), "layers": (0, 2)}, probe=None)
    assert params_per_rank(many, o) == 2 * 2 * geometry.hidden
    assert dict(settings_list(replace(result, spec=many), {}))["Adapters at"] == (
        "q_proj of layers 0, 2"
    )
    foreign = make_spec(model={"id": "someone/else", "revision": "abc"})
    assert params_per_rank(foreign, o) is None
    found = capacities(replace(result, spec=foreign))
    assert {panel.key for panel in capacity_panels(found)} == {"stored-bits"}
    assert "is not recorded" in capacity_text(found)
    assert all(c.bits.per_param is None and c.bits.total != 0 for c in found)


def test_a_law_that_is_open_claims_no_error(make_result: MakeResult) -> None:
    start = make_result(n_rounds=1, memft=False)
    early = assemble(start.spec, start.observations[:4], (), ())
    law = law_of(early)
    assert str(law.fit.status) == "UNDERDETERMINED"
    found = headline(early)
    assert found is not None
    for said in (" ".join(found.sentences), law_words(early)):
        assert "leave the law open" in said and "off by" not in said
