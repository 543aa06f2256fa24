"""`pmlray size --placement auto` on real Ray, to an adapter that plain PEFT recalls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pmlray.config.bases.models import TINY
from pmlray.engine.model.pull import pull_model
from tests.integration.conftest import pmlray
from tests.integration.test_size import PLAIN_PEFT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAIRS = tuple((f"key {i}:", f" {7 * i + 10}") for i in range(12))


def test_the_best_of_several_placements_is_found_trained_and_recalled_by_peft(
    tmp_path: Path,
) -> None:
    records, out = tmp_path / "facts.jsonl", tmp_path / "out"
    rows = [{"query": query, "target": target} for query, target in PAIRS]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = tmp_path / "one_core.yaml"
    profile.write_text("cpus_per_pack: 1\n")
    arguments = [
        "size", "--records", str(records), "--model", TINY, "--recall", "0.6", "--json",
        "--placement", "auto", "--out", str(out), "--profile", str(profile),
    ]  # fmt: skip
    code, stdout, stderr = pmlray(*arguments, timeout=800)
    assert code == 0, stderr[-3000:]
    found = json.loads(stdout)
    decision, own = found["sized"]["decision"], found["adapter"]
    assert len(decision["placements"]) == 4 and not decision["unmeasured"]
    assert all(row["n_runs"] >= 2 for row in decision["placements"])
    assert decision["chosen"] != decision["runner_up"] and 0.0 <= decision["p_first"] <= 1.0
    # Every run of the search measured what its adapter does to prose.
    for path in (out / "law" / "observations").iterdir():
        assert json.loads(path.read_text())["prose_delta_loss"] is not None
    chosen = next(r for r in decision["placements"] if r["placement"] == decision["chosen"])
    assert found["attempts"][0]["lora_rank"] == chosen["trained_rank"]
    assert found["recall"]["reached"]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == own["lora_rank"] and config["layers_to_transform"] == own["layers"]

    told = [sys.executable, "-I", "-c", PLAIN_PEFT, str(pull_model(TINY)), str(out / "adapter")]
    done = subprocess.run([*told, str(records)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)) == found["recall"]["n_recalled"]
