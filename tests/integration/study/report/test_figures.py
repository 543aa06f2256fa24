"""What the figures of the surface, the grid, the stubborn tokens and MemFT's gains show."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.memft import memft_panels, pair_differences
from pmlray.study.report.figures.placed import by_placement
from pmlray.study.report.figures.search import order_panels
from pmlray.study.report.figures.surface import boundary_rows, surface_panels, surface_rows
from pmlray.study.report.stubborn import (
    stubborn_panels,
    stubborn_table,
    stubborn_text,
    stubborn_tokens,
)
from tests.integration.study.report.test_search_report import law_of, rows_of


def test_the_surface_is_the_law_and_fills_the_axes(result: SearchResult) -> None:
    law = law_of(result)
    (placed,) = by_placement(result)
    rows = surface_rows(placed, [1, 16], [32, 256], 200)
    r, length = (np.array([row[name] for row in rows]) for name in ("lora_rank", "seq_len"))
    drawn = [row["delta_loss"] for row in rows]
    # The places are rounded to four digits.
    assert law.average.predict(r, length, 200) == pytest.approx(drawn, rel=2e-3)
    for edges, low, high in (("below above", 1, 16), ("left right", 32, 256)):
        start, end = edges.split()
        assert min(row[start] for row in rows) < low and max(row[end] for row in rows) > high
        # Each cell reaches into the next: no gap shows the page.
        starts, ends = ({row[name] for row in rows} for name in (start, end))
        for s, e in zip(sorted(starts)[1:], sorted(ends), strict=False):
            assert s < e


def test_the_boundary_is_where_the_law_says_so(result: SearchResult) -> None:
    law, wanted = law_of(result), 10.8 - math.log(2)
    (placed,) = by_placement(result)
    rows = boundary_rows(placed, wanted, [1, 16], [32, 256], 200)
    inside = [row for row in rows if row["lora_rank"] is not None]
    assert len(inside) > 5
    for row in inside:
        # Half of the samples reach it there and half do not.
        reached = law.average_samples.predict(row["lora_rank"], row["seq_len"], 200)
        middle = np.sort(reached)[reached.size - 1 - reached.size // 2]
        assert float(middle) == pytest.approx(wanted, abs=5e-3)
        assert row["low"] <= row["lora_rank"] <= row["high"]
    assert boundary_rows(placed, 1e3, [1, 16], [32, 256], 200) == []


def test_dots_of_the_surface_are_the_mean_measurements(result: SearchResult) -> None:
    (panel,) = surface_panels(result)
    dots = next(rows for rows in rows_of(panel.spec()) if "n_runs" in rows[0])
    assert sum(row["n_runs"] for row in dots) == len(result.law_observations)
    twice = next(row for row in dots if row["n_runs"] == 2)
    own = [
        o.delta_loss
        for o in result.law_observations
        if (o.point.lora_rank, o.point.seq_len) == (twice["lora_rank"], twice["seq_len"])
    ]
    assert len(own) == 2 and twice["delta_loss"] == pytest.approx(sum(own) / 2, abs=1e-5)


def test_the_runs_of_a_grid_have_places_of_their_own(result: SearchResult) -> None:
    grid = tuple(
        replace(o, sequence_id=q, run_key=f"{o.run_key}-{q}")
        for q in range(9)
        for o in result.law_observations[:6]
    )
    (panel,) = order_panels(replace(result, observations=grid))
    (rows,) = rows_of(panel.spec())
    assert [row["order"] for row in rows] == list(range(1, 55))
    places = {(row["lora_rank"], row["seq_len"], row["across"], row["down"]) for row in rows}
    assert len(places) == 54
    assert {row["across"] for row in rows} == {row["down"] for row in rows} == {-1, 0, 1}
    assert "text" not in str(panel.spec()["mark"])


def test_a_token_that_fails_alone_is_told(result: SearchResult) -> None:
    """Runs that recall everything but one token, and one that recalls nothing."""

    def with_fault(o_p: int, index: int) -> tuple[float, ...]:
        return tuple(0.1 if i == 5 else 0.9 for i in range(o_p)) if index else (0.1,) * o_p

    faulty = tuple(
        replace(o, token_p=with_fault(o.point.seq_len, i), sequence_id=0, run_key=str(i), seed=i)
        for i, o in enumerate(result.law_observations)
    )
    found = stubborn_tokens(replace(result, observations=faulty))
    table = stubborn_table(found)
    assert [row[:2] for row in table.rows] == [(0, 5)] and table.rows[0][-1] == "pathology"
    assert "1 fail significantly more often" in stubborn_text(found)
    dots = next(r for r in rows_of(stubborn_panels(found)[0].spec()) if "failing" in r[0])
    at = {row["position"]: row["failing"] for row in dots}
    assert at[5] == 1.0 and at[4] == pytest.approx(1 / len(faulty), abs=1e-4)
    assert "No run kept" in stubborn_text(()) and stubborn_panels(()) == ()


def test_gains_of_memft_are_paired_over_texts(result: SearchResult) -> None:
    changed = pair_differences(result.pairs)
    assert len(changed) == 4  # two points, two methods
    for point, method, differences in changed:
        own = [p for p in result.pairs if (p.point, p.method) == (point, method)]
        gains = [p.memft.recall.token - p.sft.recall.token for p in own]
        interval = ttest_1samp(gains, 0.0).confidence_interval(0.95)
        shown = differences["token_recall"]
        assert (shown.mean, shown.low, shown.high) == pytest.approx(
            (np.mean(gains), max(interval.low, -1.0), min(interval.high, 1.0))
        )
    (panel,) = (p for p in memft_panels(result.pairs) if p.key == "memft-difference")
    drawn = next(rows for rows in rows_of(panel.spec()) if "difference" in rows[0])
    assert len(drawn) == 12
    ends = panel.spec()["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert ends[0] >= -1 and ends[1] <= 1
