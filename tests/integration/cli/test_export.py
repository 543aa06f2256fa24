"""`pmlray export`: the merged model, as transformers alone loads it, is PEFT's adapted one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.adapters.adapter_spec import Adapter, Probe
from pmlray.config.bases.models import KNOWN_MODELS, TINY
from pmlray.engine.adapters import merge
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.model.pull import pull_model
from pmlray.errors import ModelError, PmlrayError, SpecError, StoreError
from tests.adapters import save_one
from tests.chats import chat_base
from tests.unit.cli.test_size import invoke, refused

QUERIES = ["Who lives at number seven?", "key 3:", "a"]
# In a process of its own: what it says must come from the folder alone.
ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, *queries = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
said = []
for query in queries:
    prompt = tokenizer(query, return_tensors="pt")
    said.append(model.generate(**prompt, max_new_tokens=16, do_sample=False)[0].tolist())
print(json.dumps(said))
assert not {"peft", "pmlray"} & set(sys.modules)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return chat_base(tmp_path / "base")


def of_pmlray(folder: Path, base: Path) -> None:
    """All linear modules of two layers, with an alpha of its own."""
    pull_model(TINY)
    geometry = KNOWN_MODELS[TINY]
    spec = Adapter(target_modules="all-linear", layers=(1, 3), alpha="2r")
    placement = spec.resolve(geometry.n_layers, geometry.modules)
    weights, generator = {}, torch.Generator().manual_seed(0)
    for site in placement.sites:
        width, out = geometry.modules[site.module]
        a, b = torch.randn(width, 3, generator=generator), torch.randn(3, out, generator=generator)
        weights[site] = (a, 0.02 * b)
    save_adapter(folder, placement, weights, str(base))


def of_one_layer(folder: Path, base: Path) -> None:
    weights = torch.randn(128, 2), 0.2 * torch.randn(2, 64)
    save_one(folder, Probe(placement="down_proj", layer=2), weights, str(base))


def of_peft(folder: Path, base: Path) -> None:
    """DoRA with rsLoRA, which pmlray does not train."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], use_dora=True, use_rslora=True,
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    get_peft_model(model, config).save_pretrained(str(folder))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


@pytest.mark.parametrize("make", [of_pmlray, of_one_layer, of_peft])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_the_adapter_beside_its_base(
    make: Any, dtype: str, base: Path, tmp_path: Path
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "deep" / "merged"
    make(adapter, base)
    done = invoke("export", adapter, out, "--dtype", dtype, "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["dtype"] == dtype
    assert found["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    bare = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(str(base))("Ask it.", return_tensors="pt")["input_ids"]
    unadapted = logits(bare, ids)
    wanted = logits(PeftModel.from_pretrained(bare, str(adapter)), ids)
    merged = AutoModelForCausalLM.from_pretrained(str(out))
    assert merged.dtype == getattr(torch, dtype)
    off = (logits(merged, ids) - wanted).norm() / wanted.norm()
    moved = (unadapted - wanted).norm() / wanted.norm()
    assert off < (1e-5 if dtype == "float32" else 0.03) < moved / 3
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    turns = [{"role": "user", "content": "Who?"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<user>Who?\n"
    assert sorted(p.name for p in out.parent.iterdir()) == ["merged"]


def test_it_answers_by_transformers_alone_as_the_adapter_does(base: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    of_pmlray(adapter, base)
    told = invoke("export", adapter, out)
    assert told.exit_code == 0 and "in float32" in told.stdout, told.exception
    told = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(out), *QUERIES],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    bare = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    prompts = [tokenizer(query, return_tensors="pt") for query in QUERIES]

    def said(model: Any) -> list[list[int]]:
        ids = (model.generate(**p, max_new_tokens=16, do_sample=False)[0] for p in prompts)
        return [one.tolist() for one in ids]

    without = said(bare)
    wanted = said(PeftModel.from_pretrained(bare, str(adapter)))
    assert json.loads(told.stdout) == wanted != without


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    of_one_layer(adapter, base)

    def said(kind: type[PmlrayError], *options: str | Path) -> str:
        before = sorted(tmp_path.iterdir())
        found = refused(kind, "export", *(options or (adapter, out)))
        assert sorted(tmp_path.iterdir()) == before
        return found

    other = tmp_path / "other"
    shutil.copytree(base, other)
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    assert "is an adapter of" in said(ModelError, adapter, out, "--model", other)
    assert "holds no adapter" in said(ModelError, base, out)
    block = tmp_path / "block"
    save_one(block, Probe(layer=2), (torch.ones(64, 2), torch.ones(2, 64)), str(base))
    assert "no weight of its base can take that in" in said(ModelError, block, out)
    assert "is no folder" in said(SpecError, adapter, "s3://bucket/merged")
    with monkeypatch.context() as few:
        usage = type("Usage", (), {"free": 2**20})()
        few.setattr(merge.shutil, "disk_usage", lambda _folder: usage)
        assert "0.00 GiB free; make room" in said(StoreError)
    with monkeypatch.context() as strict:
        strict.setattr(merge, "TOLERANCE", {"float32": -1.0, "bfloat16": -1.0})
        assert "answers otherwise" in said(ModelError)
    out.mkdir()
    assert "is there already" in said(SpecError)
