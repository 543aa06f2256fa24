"""`pmlray size --placement auto` by a law measured here: choice, training, and recall by PEFT.

Training is on real Ray; the law is measured in this process, without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pmlray.api.sizing.plan import SizePlan, SizeRequest, prepare_size
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.bases.models import TINY
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.pull import pull_model
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import RecordSource
from pmlray.study.budget.packs import of_one_kind
from pmlray.study.sizing.compared import compared_first_runs
from pmlray.study.sizing.request import Wanted
from pmlray.types import DesignPoint, Pack
from tests.integration.conftest import pmlray
from tests.integration.ray_jobs.test_size import PLAIN_PEFT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PAIRS = tuple((f"key {i}:", f" {7 * i + 10}") for i in range(12))


def measured_law(plan: SizePlan, folder: Path) -> Path:
    """The store of a plan's search: its first runs, and three ranks of the smallest placement."""
    search, store = plan.search, FileStore(folder)
    spec = search.spec
    whole = (spec.space.seq_len[-1], spec.space.train_steps[-1])
    points = [DesignPoint(rank, *whole, "down_proj-2") for rank in (2, 4, 8)]
    runs = [search.plan_run(point, "sft", 1, 0, "law") for point in points]
    kinds = of_one_kind((*compared_first_runs(search), *runs), plan.cost_by(()))
    for n, alike in enumerate(kinds):
        measure_pack(search, Pack(n, alike), store, store.adapters, TorchStepper, {})
    (folder / "search.json").write_text(spec.model_dump_json())
    return folder


def test_the_best_of_several_placements_is_chosen_trained_and_recalled_by_peft(
    tmp_path: Path,
) -> None:
    pull_model(TINY)
    records, out = tmp_path / "facts.jsonl", tmp_path / "out"
    rows = [{"query": query, "target": target} for query, target in PAIRS]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = SizeRequest(
        *(
            RecordSource(records),
            TINY,
            None,
            "float32",
            Wanted(0.6, 0.9),
            None,
            out,
            None,
            None,
            None,
        ),
        *(None, None, ClusterProfile()),
        compared=("auto",),
    )
    law = measured_law(prepare_size(request), tmp_path / "law")
    # Every run measured what its adapter does to prose.
    for path in (law / "observations").iterdir():
        assert json.loads(path.read_text())["prose_delta_loss"] is not None
    profile = tmp_path / "one_core.yaml"
    profile.write_text("cpus_per_pack: 1\n")
    arguments = [
        "size", "--records", str(records), "--model", TINY, "--recall", "0.6", "--json",
        "--placement", "auto", "--law", str(law), "--out", str(out), "--profile", str(profile),
    ]  # fmt: skip
    code, stdout, stderr = pmlray(*arguments)
    assert code == 0, stderr[-3000:]
    found = json.loads(stdout)
    decision, own = found["sized"]["decision"], found["adapter"]
    assert len(decision["placements"]) == 4 and not decision["unmeasured"]
    assert all(row["n_runs"] >= 2 for row in decision["placements"])
    assert decision["chosen"] != decision["runner_up"] and 0.0 <= decision["p_first"] <= 1.0
    chosen = next(r for r in decision["placements"] if r["placement"] == decision["chosen"])
    assert found["attempts"][0]["lora_rank"] == chosen["trained_rank"]
    assert found["recall"]["reached"]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == own["lora_rank"] and config["layers_to_transform"] == own["layers"]

    told = [sys.executable, "-I", "-c", PLAIN_PEFT, str(pull_model(TINY)), str(out / "adapter")]
    done = subprocess.run([*told, str(records)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)) == found["recall"]["n_recalled"]
