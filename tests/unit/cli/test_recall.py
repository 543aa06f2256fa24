"""`pmlray recall` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pmlray.config.base_models import TINY
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.errors import ModelError
from tests.unit.cli.test_size import N_RECORDS, invoke, records, refused

__all__ = ["records"]


def test_recall_ends_with_1_below_its_minimum(
    records: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    arguments = ["recall", "--adapter", tiny_adapter, "--records", records]
    assert invoke(*arguments).exit_code == 0
    assert invoke(*arguments, "--min", "0").exit_code == 0
    below = invoke(*arguments, "--min", "0.99")
    assert below.exit_code == 1 and "below the wanted 0.99" in below.stdout
    assert "instead of ' 10'" in below.stdout
    found = json.loads(invoke(*arguments, "--min", "0.99", "--json").stdout)
    assert found["n_recalled"] == 0 and found["passed"] is False
    assert len(found["not_recalled"]) == N_RECORDS


def test_recall_refuses_an_adapter_of_something_else(
    records: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    arguments = ["recall", "--adapter", tiny_adapter, "--records", records]
    assert "not of smollm2-135m" in refused(ModelError, *arguments, "--model", "smollm2-135m")
    config = json.loads((tiny_adapter / "pmlray_adapter.json").read_text())
    (tiny_adapter / "pmlray_adapter.json").write_text(json.dumps({**config, "layer": 9}))
    assert "adapts layer 9" in refused(ModelError, *arguments)
    assert "holds no adapter" in refused(
        ModelError, "recall", "--adapter", tmp_path, "--records", records
    )


@pytest.fixture
def tiny_adapter(tmp_path: Path) -> Path:
    """An adapter that changes nothing, as a store keeps it."""
    folder = tmp_path / "store" / "adapters" / "0"
    weights = torch.zeros(64, 2), torch.zeros(2, 64)
    save_adapter(folder, Probe(layer=2), weights, TINY)
    return folder
