"""`pmlray recall` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pmlray.config.base_models import TINY
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.model.pull import pull_model
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


def test_a_base_of_another_machine_is_overruled_by_model(
    records: Path, tmp_path: Path, other_machines: Path
) -> None:
    arguments = ["recall", "--adapter", other_machines, "--records", records, "--json"]
    said = refused(ModelError, *arguments)
    assert "/content/base" in said and "give its base by --model" in said
    for model in (TINY, str(pull_model(TINY))):
        done = invoke(*arguments, "--model", model)
        assert done.exit_code == 0 and json.loads(done.stdout)["n_records"] == N_RECORDS
    config = json.loads((other_machines / "adapter_config.json").read_text())
    for named in ("owner/name", None):
        changed = {**config, "base_model_name_or_path": named}
        (other_machines / "adapter_config.json").write_text(json.dumps(changed))
        assert "--model" in refused(ModelError, *arguments)
        assert invoke(*arguments, "--model", TINY).exit_code == 0


def test_a_base_that_is_here_is_not_overruled_by_another(
    records: Path, tmp_path: Path, other_machines: Path
) -> None:
    config = json.loads((other_machines / "adapter_config.json").read_text())
    own = tmp_path / "base"
    shutil.copytree(pull_model(TINY), own)
    changed = {**config, "base_model_name_or_path": str(own)}
    (other_machines / "adapter_config.json").write_text(json.dumps(changed))
    other = tmp_path / "other"
    shutil.copytree(own, other)
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    arguments = ["recall", "--adapter", other_machines, "--records", records]
    assert invoke(*arguments).exit_code == 0
    assert "not of" in refused(ModelError, *arguments, "--model", other)


@pytest.fixture
def other_machines(tmp_path: Path) -> Path:
    """An adapter as PEFT saved it on another machine."""
    folder = tmp_path / "foreign"
    probe = Probe(placement="down_proj", layer=2)
    save_adapter(folder, probe, (torch.zeros(128, 2), torch.zeros(2, 64)), "/content/base")
    return folder
