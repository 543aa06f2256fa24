"""A search's study in optuna-dashboard, as a person opens it."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pmlray.api.search_run import study_of
from pmlray.backends.optuna.study import JOURNAL
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import prepare_search
from pmlray.study.search.plan import first_cost
from tests.browser import chromium, require_chromium
from tests.fakes import observe
from tests.integration.conftest import SMOKE, end_group, free_port

pytestmark = pytest.mark.slow


def test_a_searchs_study_opens_with_its_plots(tmp_path: Path) -> None:
    search, store = prepare_search(SMOKE), FileStore(tmp_path)
    for place, point in enumerate(search.spec.space.points()):
        store.put(observe(search.plan_run(point, "sft", 0, 0, "law"), 0, place, 0.05, 1e-3))
    assert study_of(search, store, first_cost(search, False)).n_trials == 12
    path, port = require_chromium(), free_port()
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), "--port", str(port)]
    process = subprocess.Popen(
        [*command, str(tmp_path / JOURNAL)],
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
            page.get_by_text(search.spec.search_id).first.wait_for()
            page.goto(f"{address}/dashboard/studies/0")
            for shown in ("Hyperparameter Importance", "Intermediate values", "Best Trial"):
                page.get_by_text(shown).first.wait_for()
            page.locator(".js-plotly-plot .scatterlayer").first.wait_for(state="attached")
            page.goto(f"{address}/dashboard/studies/0/trials")
            for shown in ("12 Trials", "run_key", "lora_rank", "token_recall"):
                page.get_by_text(shown).first.wait_for()
    finally:
        end_group(process)
