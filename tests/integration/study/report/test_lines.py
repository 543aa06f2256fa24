"""Lines of the figures: each has its name, and no point lies above the one that bounds them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import law_panels
from pmlray.study.report.headline import headline
from pmlray.study.report.sections import report_sections
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.conftest import MakeResult

# Bars of an interval, and what joins a pair: each has the dot that it belongs to.
BARS = {"x2", "y2"}


def unnamed_lines(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Layers that draw a line across the figure which neither a legend nor a colour names."""
    found = []
    for layer in spec.get("layer", []):
        mark, encoding = layer["mark"], layer["encoding"]
        if mark["type"] not in ("line", "rule") or BARS & set(encoding):
            continue
        named = "field" in (encoding.get("strokeDash") or encoding.get("color") or {})
        if not named:
            found.append(layer)
    return found


@pytest.mark.parametrize("several", [False, True])
def test_every_line_in_a_figure_has_its_name(
    result: SearchResult, placed_result: SearchResult, several: bool
) -> None:
    shown = placed_result if several else result
    panels = [panel for section in report_sections(shown, {}) for panel in section.panels]
    assert len(panels) >= 30
    for panel in panels:
        # A curve over rounds is what its axis is named for.
        if not panel.key.endswith("-by-round"):
            assert unnamed_lines(panel.spec()) == [], panel.key


def test_no_point_lies_above_the_line_that_none_can_exceed(make_result: MakeResult) -> None:
    result = make_result()
    # Texts differ in their base loss: the law's is the typical one, and some runs fell by more.
    runs = tuple(
        replace(o, base_loss=o.base_loss + 0.8 * (i % 3), final_loss=0.001)
        for i, o in enumerate(result.observations)
    )
    varied = replace(result, observations=runs)
    typical = law_of(result).average.base_loss
    for panel in law_panels(varied):
        sets = list(rows_of(panel.spec()))
        (line,) = next(rows for rows in sets if set(rows[0]) == {"base_loss"})
        points = next(rows for rows in sets if "token_recall" in rows[0])
        assert max(row["delta_loss"] for row in points) > typical
        assert max(row["delta_loss"] for row in points) <= line["base_loss"]
        layer = panel.spec()["layer"][-1]
        assert layer["encoding"]["y"]["scale"]["domain"][1] > line["base_loss"]


def test_the_words_bound_each_text_by_its_own_base_loss(make_result: MakeResult) -> None:
    said = headline(make_result())
    assert said is not None
    assert "no reduction can exceed the base loss of 10.8 nats per token" in " ".join(
        said.sentences
    )
