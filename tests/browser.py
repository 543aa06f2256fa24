"""A headless Chromium of this system, and what a test asks of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
# Vega's marks: what a figure shows beside its axes and legends.
DOTS = ".mark-symbol.role-mark path, .mark-rect.role-mark path"
MARKS = f"{DOTS}, .mark-line.role-mark path"
# Texts of a figure that end outside of it, with the figure's key.
CLIPPED = """
() => [...document.querySelectorAll('[data-figure]')].flatMap(plot => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('svg text')]
    .filter(text => text.textContent && getComputedStyle(text).opacity !== '0')
    .filter(text => { const r = text.getBoundingClientRect();
                      return r.width > 0 && (r.left < box.left - 1 || r.right > box.right + 1); })
    .map(text => plot.dataset.figure + ': ' + text.textContent);
})
"""


def require_chromium() -> str:
    """Its path; a test without it is skipped, and fails where CI must have it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "needs Chromium (Debian's package chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """A browser with an empty profile, ended at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=QUIET, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """An open page, and what it said and asked for while it was."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Serious and critical faults that axe-core finds."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@contextmanager
def opened(browser: Browser, file: Path, width: int, scheme: str) -> Iterator[Seen]:
    """A local page whose figures are drawn, in a window `width` pixels wide, light or dark."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    try:
        page = context.new_page()
        seen = Seen(page)
        page.on("console", lambda said: seen.console.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: seen.console.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn !== undefined")
        yield seen
    finally:
        context.close()
