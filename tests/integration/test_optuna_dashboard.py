"""A search's study in optuna-dashboard, as a person opens it."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.browser import chromium, require_chromium
from tests.integration.conftest import Finished, end_group, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_searchs_study_opens_with_its_plots(smoke: Finished) -> None:
    path, port = require_chromium(), free_port()
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), "--port", str(port)]
    process = subprocess.Popen(
        [*command, str(smoke.store / "optuna.journal")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/studies", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.2)
        with chromium(path) as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 1400})
            page.goto(f"{address}/dashboard/")
            page.get_by_text(smoke.found["search_id"]).first.wait_for()
            page.goto(f"{address}/dashboard/studies/0")
            for shown in ("History", "Intermediate values", "Best Trial"):
                page.get_by_text(shown).first.wait_for()
            page.locator(".js-plotly-plot .scatterlayer").first.wait_for(state="attached")
            page.goto(f"{address}/dashboard/studies/0/trialTable")
            page.get_by_text("delta_loss").first.wait_for()
    finally:
        end_group(process)
