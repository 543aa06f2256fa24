"""Reports and comparisons as a person opens them, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.study.comparison.results import MethodComparison, MethodResult
from pmlray.study.findings.differences import Difference
from pmlray.study.report.comparison_report import write_comparison
from pmlray.study.report.search_report import write_report
from pmlray.types import DesignPoint, Observation
from tests.browser import CLIPPED, DOTS, MARKS, chromium, opened, require_chromium
from tests.integration.conftest import ROOT, Finished
from tests.integration.study.report.test_search_report import ALL_FIGURES
from tests.unit.study.conftest import MakeResult, make_result  # noqa: F401
from tests.unit.study.placed_search import placed_search

EVIL = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"
WINDOWS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(require_chromium()) as found:
        yield found


def traced(o: Observation) -> Observation:
    """The run as the engine keeps it, with its tokens while it trained; its key means harm."""
    end, last = np.array(o.token_p), o.point.train_steps
    rows = tuple((s, tuple((end * s / last).round(3).tolist())) for s in (0, 1, 4, 16, 64))
    return replace(o, token_p_curve=rows, run_key=EVIL + o.run_key)


@pytest.fixture(scope="module")
def report(make_result: MakeResult, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A report with every figure, whose names and texts mean harm."""
    result = make_result()
    spec = result.spec.model_copy(update={"name": EVIL})
    observations = tuple(map(traced, result.observations))
    failures = tuple(replace(f, reason=EVIL) for f in result.failures)
    evil = replace(result, spec=spec, observations=observations, failures=failures)
    return write_report(evil, tmp_path_factory.mktemp("report"), {"machine": EVIL, EVIL: EVIL})


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods at two points, drawn by hand."""
    spec = load_spec(CompareSpec, ROOT / "searches" / "comparisons" / "phonebook.yaml")
    rng = np.random.default_rng(0)
    results = []
    for point in (DesignPoint(2, 1280, 1600), DesignPoint(16, 1280, 1600)):
        for method in spec.all_methods():
            changed = {}
            if method != "sft":
                for name in ("exact_recall", "prefix_recall", "token_recall"):
                    mean = float(rng.normal(0.1, 0.1))
                    changed[name] = Difference(mean, mean - 0.1, mean + 0.1, 10)
            means = {"exact_recall": 0.7, "gpu_seconds": 30.0}
            results.append(MethodResult(point, method, 4e-2, 20, means, changed))
    found = MethodComparison(f"{EVIL}", tuple(results), ())
    folder = tmp_path_factory.mktemp("comparison")
    return write_comparison(found, folder, {"machine": EVIL})[0]


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_are_drawn_whole_and_keep_to_themselves(
    browser: Browser, request: pytest.FixtureRequest, name: str, width: int, scheme: str
) -> None:
    file: Path = request.getfixturevalue(name)
    with opened(browser, file, width, scheme) as seen:
        page = seen.page
        figures = page.locator("[data-figure]")
        drawn = {figures.nth(i).get_attribute("data-figure") for i in range(figures.count())}
        wanted = ALL_FIGURES | {"phase-diagram"} if name == "report" else {"comparison"}
        assert drawn == wanted
        assert page.evaluate("document.documentElement.dataset.drawn") == str(len(drawn))
        for key in wanted:
            plot = page.locator(f"[data-figure='{key}']")
            assert plot.locator(MARKS).count() > 0, key
            box = plot.locator("svg").bounding_box()
            assert box is not None and 200 < box["width"] <= width and box["height"] > 100, key
        assert page.evaluate(CLIPPED) == []
        assert seen.overflow() <= 0
        assert seen.console == []
        assert seen.requests == [file.as_uri()]
        assert page.evaluate("window.ran") is None
        assert EVIL in page.locator("main").inner_text() + page.locator("h1").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_have_no_serious_accessibility_fault(
    browser: Browser, request: pytest.FixtureRequest, name: str, width: int, scheme: str
) -> None:
    with opened(browser, request.getfixturevalue(name), width, scheme) as seen:
        assert seen.faults() == []


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_every_figure_tells_its_numbers_under_the_mouse(
    browser: Browser, request: pytest.FixtureRequest, name: str
) -> None:
    with opened(browser, request.getfixturevalue(name), 1440, "light") as seen:
        page = seen.page
        tip = page.locator("#vg-tooltip-element.visible")
        for plot in page.locator("[data-figure]").all():
            plot.scroll_into_view_if_needed()
            page.mouse.move(0, 0)
            # Small marks lie under others: the last in a figure is the topmost.
            plot.locator(DOTS).last.hover(force=True)
            tip.wait_for(timeout=5000)
            assert any(c.isdigit() for c in tip.inner_text()), plot.get_attribute("data-figure")


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a search over three placements."""
    return write_report(placed_search(), tmp_path_factory.mktemp("placed"), {})


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_a_report_of_several_placements_is_drawn_whole(
    browser: Browser, placed: Path, width: int, scheme: str
) -> None:
    with opened(browser, placed, width, scheme) as seen:
        figures = seen.page.locator("[data-figure]")
        keys = {figures.nth(i).get_attribute("data-figure") for i in range(figures.count())}
        assert {"placement-worth", "placement-bits", "placement-collapse-192"} <= keys
        assert all(plot.locator(MARKS).count() for plot in figures.all())
        assert seen.page.evaluate(CLIPPED) == []
        assert seen.overflow() <= 0 and seen.console == [] and seen.faults() == []


@pytest.mark.ray
def test_a_real_searchs_report_is_drawn_whole(browser: Browser, smoke: Finished) -> None:
    file = smoke.store / "report" / "report.html"
    with opened(browser, file, 390, "dark") as seen:
        figures = seen.page.locator("[data-figure]")
        assert {"law-surface", "phase-diagram", "stubborn-tokens", "memft-difference"} <= {
            figures.nth(i).get_attribute("data-figure") for i in range(figures.count())
        }
        assert all(plot.locator(MARKS).count() for plot in figures.all())
        assert seen.page.evaluate(CLIPPED) == []
        assert seen.overflow() <= 0 and seen.console == [] and seen.faults() == []
