"""From records to a checked adapter, as a user does it: real Ray, DeepSpeed, Optuna and MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import pmlray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_size_then_recall(tmp_path: Path) -> None:
    records, out = tmp_path / "facts.jsonl", tmp_path / "out"
    rows = [{"query": f"key {i}:", "target": f" {7 * i + 10}"} for i in range(8)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "size", "--records", str(records), "--model", "tiny-random-llama", "--recall", "0.75",
        "--steps", "200", "--max-rank", "32", "--dtype", "float32", "--out", str(out), "--json",
    ]  # fmt: skip
    code, stdout, stderr = pmlray(*arguments)
    assert code == 0, stderr[-3000:]
    found = json.loads(stdout)
    sized, recall = found["sized"], found["recall"]
    assert recall["reached"] and recall["n_recalled"] >= 6
    assert found["attempts"][0]["lora_rank"] == sized["lora_rank"] <= 32
    assert found["attempts"][-1]["lora_rank"] == found["adapter"]["lora_rank"]
    assert sized["bits"] > 0 and sized["predicted_gpu_seconds"] > 0
    assert found["cost"]["search_gpu_seconds"] > 0 < found["cost"]["training_gpu_seconds"]
    assert [f"[{stage}/4]" in stderr for stage in (1, 2, 3, 4)] == [True] * 4
    # The teacher-forced pass and real decoding agree on what is recalled.
    training = out / "training" / "observations" / f"{found['attempts'][-1]['run_key']}.json"
    measured = json.loads(training.read_text())["recall"]["exact"]
    assert measured == pytest.approx(recall["exact_recall"])

    check = ["recall", "--adapter", str(out / "adapter"), "--records", str(records), "--json"]
    code, stdout, stderr = pmlray(*check, "--min", "0.75")
    assert code == 0, stderr[-3000:]
    assert json.loads(stdout)["n_recalled"] == recall["n_recalled"]
    missed = (out / "adapter" / "not_recalled.jsonl").read_text().splitlines()
    assert json.loads(stdout)["not_recalled"] == [json.loads(line) for line in missed]

    # A new recall is sized by the law that is there, and what is trained is not trained again.
    before = {p: p.stat().st_mtime_ns for p in (out / "law" / "observations").iterdir()}
    code, stdout, stderr = pmlray(*arguments, "--dry-run", "--law", str(out / "law"))
    assert code == 0, stderr[-3000:]
    assert json.loads(stdout)["answer"]["lora_rank"] == sized["lora_rank"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
