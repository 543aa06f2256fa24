"""The code in an adapter's card, as somebody else runs it: in a fresh process, without pmlray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import peft
import pytest
import torch

import pmlray
from pmlray.config.bases.models import TINY
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.model_card import write_card
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.engine.model.pull import pull_model
from tests.adapters import save_one
from tests.fakes import observe
from tests.unit.conftest import make_search, search_file  # noqa: F401

LAYER, QUERY = 2, "What is the number of the seventh house?"
PURE = "import sys\nassert not {forbidden} & set(sys.modules)\n"


def answer_of_card(folder: Path, forbidden: set[str]) -> str:
    """What the card's code prints, which nothing is changed in but the query."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert 'query = "QUERY"' in code
    code = code.replace("QUERY", QUERY) + PURE.format(forbidden=forbidden)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placement", ["down_proj", "mlp"])
def test_the_code_of_a_card_answers_as_recall_does(
    placement: Literal["down_proj", "mlp"],
    dtype: Literal["float32", "bfloat16"],
    make_search: Callable[..., PreparedSearch],  # noqa: F811
    tmp_path: Path,
) -> None:
    if dtype == "bfloat16" and not multiplies_bfloat16(torch.device("cpu")):
        pytest.skip("pmlray computes in float32 here")
    pull_model(TINY)
    changes = [f"probe={{placement: {placement}, layer: {LAYER}}}", f"model.dtype={dtype}"]
    search = make_search(f"model.id={TINY}", *changes)
    run = search.plan_run(search.spec.space.points()[0], "sft", 1, 0, "law")
    generator = torch.Generator().manual_seed(0)
    width = 64 if placement == "mlp" else 128
    a, b = torch.randn(width, 3, generator=generator), torch.randn(3, 64, generator=generator)
    weights = (a, 0.2 * b)
    folder = tmp_path / "adapter"
    save_one(folder, Probe(placement=placement, layer=LAYER), weights, TINY)
    write_card(folder, search.spec, observe(run, 0, 0, 0.0, 1e-3))

    found = answer_of_card(folder, {"pmlray"} if placement == "down_proj" else {"pmlray", "peft"})

    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"query": QUERY, "target": " It is the number forty-two."}))
    (ours,) = pmlray.check_recall(folder, records, dtype=dtype).answers
    # Byte tokens may end within a character.
    told = ours.rstrip("\ufffd")
    length = min(len(told), len(found))
    assert length >= 5 and told[:length] == found[:length]
    save_one(folder, Probe(placement=placement, layer=LAYER), (a, 0 * b), TINY)
    (bare,) = pmlray.check_recall(folder, records, dtype=dtype).answers
    assert bare != ours


def test_peft_finds_the_base_of_an_adapter_by_its_config(tmp_path: Path) -> None:
    base = pull_model(TINY)
    probe = Probe(placement="down_proj", layer=LAYER)
    save_one(tmp_path, probe, (torch.ones(128, 2), torch.ones(2, 64)), TINY)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))
    assert Path(model.peft_config["default"].base_model_name_or_path) == base
    assert model.get_base_model().config.num_hidden_layers == 4
    save_one(tmp_path, probe, (torch.ones(1536, 2), torch.ones(2, 576)), "smollm2-135m")
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert config.base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
