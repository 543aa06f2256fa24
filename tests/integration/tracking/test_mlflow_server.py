"""A search on a real MLflow server with logins and a bucket: what its pages show, and what a client
gets back from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pmlray.backends.mlflow.node_load import NodeLoad
from pmlray.backends.mlflow.parents import StudyInMlflow
from pmlray.backends.mlflow.system_metrics import watch
from pmlray.backends.mlflow.tracker import MlflowTracker
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.load import load_spec
from pmlray.config.prepared_search import prepare_search
from pmlray.config.search_spec import SearchSpec
from pmlray.engine.adapters.model_card import write_card
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.model.pull import pull_model
from pmlray.types import DesignPoint, Observation
from tests.adapters import at_site
from tests.browser import chromium, require_chromium
from tests.fakes import observe
from tests.integration.conftest import SMOKE, free_port
from tests.integration.tracking.composed_mlflow import Mlflow, composed_server
from tests.mlflow_runs import all_runs

pytestmark = pytest.mark.slow

NODE = "gpu-7.cluster"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    with composed_server(tmp_path_factory.mktemp("server"), free_port()) as found:
        yield found


@pytest.fixture(scope="module")
def server(served: Mlflow) -> Iterator[str]:
    """Its address, for clients that have a login."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.login.items():
            patch.setenv(name, value)
        yield served.uri


@pytest.fixture(scope="module")
def mirrored(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The address of the page that shows a search, and the folder of its adapters."""
    folder = tmp_path_factory.mktemp("search")
    search = prepare_search(SMOKE, ("probe.placement=down_proj",))
    spec, generator = search.spec, torch.Generator().manual_seed(0)
    observations: list[Observation] = []
    for place, rank in enumerate((1, 2, 8)):
        run = search.plan_run(DesignPoint(rank, 32, 60), "sft", 0, 0, "law")
        measured = observe(run, 0, place, 0.0, 1e-3)
        text = {"content_hash": f"{rank:016x}", "n_records": 1}
        measured = replace(measured, provenance=measured.provenance | text)
        a, b = (torch.randn(s, generator=generator) for s in ((128, rank), (rank, 64)))
        weights = at_site(search.placement, a, b)
        save_adapter(folder / run.run_key, search.placement, weights, TINY)
        write_card(folder / run.run_key, search, measured)
        observations.append(measured)
    settings = spec.model_dump(mode="json")
    study = StudyInMlflow(spec.search_id, f"pmlray/{spec.name}", "a" * 12, folder)
    tracker = MlflowTracker(server, study, settings, folder)
    tracker.start()
    tracker.observe(observations)
    now = int(time.time() * 1000)
    samples = tuple((now + 1000 * i, {"cpu_utilization_percentage": 5.0 * i}) for i in range(3))
    tracker.load([NodeLoad(0, NODE, samples)])
    tracker.law({"law/rank_exponent": 0.7}, 12.0)
    tracker.finish([], "FINISHED")
    return tracker.page, folder


def runs_of(server: str, kind: str) -> list[mlflow.entities.Run]:
    return all_runs(
        MlflowClient(server), f"tags.`pmlray.kind` = '{kind}'", "metrics.`point/lora_rank` ASC"
    )


def test_peft_loads_what_mlflow_gives_back(
    served: Mlflow, server: str, mirrored: tuple[str, Path]
) -> None:
    runs = runs_of(server, "observation")
    assert [run.data.params["lora_rank"] for run in runs] == ["1", "2", "8"]
    run = runs[-1]
    got = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="adapter", tracking_uri=server
    )
    pull_model(TINY)
    base = AutoModelForCausalLM.from_pretrained(str(resolve_model(TINY, None).folder))
    model = PeftModel.from_pretrained(base, got)
    (layer,) = {n.split(".mlp.")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    spec = load_spec(SearchSpec, SMOKE, ("probe.placement=down_proj",))
    assert layer.endswith(f"layers.{spec.probe.layer}")
    given = load_file(Path(got) / "adapter_model.safetensors")
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == given.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in given.items())
    kept = mirrored[1] / run.data.tags["pmlray.run_key"]
    assert {p.name for p in Path(got).iterdir()} == {p.name for p in kept.iterdir()}
    assert {p.name for p in kept.iterdir()} > {"README.md", "adapter_config.json"}
    within = f"artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts/adapter/"
    assert {within + p.name for p in kept.iterdir()} <= set(served.objects())


def test_without_a_login_it_gives_nothing(
    server: str, mirrored: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs_of(server, "observation")[0].info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    with pytest.raises(MlflowException, match="401"):
        MlflowClient(server).get_run(run_id)
    with pytest.raises(MlflowException, match="401"):
        mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path="adapter", tracking_uri=server
        )


def test_the_machines_load_is_recorded(
    server: str, mirrored: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    (parent,) = runs_of(server, "search")
    client = MlflowClient(server)
    client.update_run(parent.info.run_id, status="RUNNING")
    system = watch(parent.info.run_id, server)
    assert system is not None
    end = time.monotonic() + 30
    while "system/cpu_utilization_percentage" not in (
        client.get_run(parent.info.run_id).data.metrics
    ):
        assert time.monotonic() < end
        time.sleep(0.1)
    system.finish()
    client.set_terminated(parent.info.run_id)


def test_its_pages_show_the_search_and_its_runs(
    served: Mlflow, server: str, mirrored: tuple[str, Path]
) -> None:
    table, _ = mirrored
    (parent,) = runs_of(server, "search")
    last = runs_of(server, "observation")[-1]
    with chromium(require_chromium()) as browser:
        user, password = served.login.values()
        page = browser.new_page(
            viewport={"width": 1440, "height": 1000},
            http_credentials={"username": user, "password": password},
        )
        runs = f"{server}/#/experiments/{parent.info.experiment_id}/runs"
        # A browser that was never here opens the training pages, with what was measured.
        page.goto(table)
        for shown in (last.info.run_name, "Model training", "exact_recall", "delta_loss"):
            assert shown is not None
            page.get_by_text(shown).first.wait_for()
        digest = parent.data.tags["pmlray.search_id"].rpartition("-")[2]
        page.goto(f"{runs}/{parent.info.run_id}")
        page.get_by_text(digest).first.wait_for()
        page.goto(f"{runs}/{last.info.run_id}")
        for shown in (last.info.run_name, "point/lora_rank", "long_context sequence 0"):
            assert shown is not None
            page.get_by_text(shown).first.wait_for()
        page.goto(f"{runs}/{parent.info.run_id}/system-metrics")
        page.get_by_text(f"{NODE}/cpu_utilization_percentage").first.wait_for()
        page.goto(f"{runs}/{last.info.run_id}/artifacts")
        page.get_by_text("adapter", exact=True).first.wait_for()
