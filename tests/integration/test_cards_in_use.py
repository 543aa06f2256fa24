"""The code in an adapter's card, as somebody else runs it: in a process without pmlray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.engine.model.pull import pull_model
from tests.adapters import save_one
from tests.fakes import observe
from tests.unit.conftest import make_search, search_file  # noqa: F401

LAYER, QUERY = 2, "What is the number of the seventh house?"
PURE = "import sys\nassert not {forbidden} & set(sys.modules)\n"


# Loads what every card's code begins with, which takes most of its time, and then runs each code
# that is asked for in a process of its own, as if it had been loaded there.
SERVER = """
import json, os, sys, traceback
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
assert not {"peft", "pmlray"} & set(sys.modules)
for line in sys.stdin:
    folder, code = json.loads(line)
    if not (child := os.fork()):
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            exec(compile(code, "card", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.__stdout__, flush=True)
"""
Ask = Callable[[Path, set[str]], str]


@pytest.fixture(scope="module")
def answer_of_card() -> Iterator[Ask]:
    """What a card's code prints, which nothing is changed in but the query, without the modules
    that are forbidden."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SERVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    ) as server:  # fmt: skip

        def ask(folder: Path, forbidden: set[str]) -> str:
            (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
            assert 'query = "QUERY"' in code
            code = code.replace("QUERY", QUERY) + PURE.format(forbidden=forbidden)
            assert server.stdin is not None and server.stdout is not None
            print(json.dumps([str(folder), code]), file=server.stdin, flush=True)
            assert server.stdout.readline().strip() == "0", (folder / "err").read_text()
            return (folder / "out").read_text()

        yield ask
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=30)


# Where an adapter sits, and the size of its random B.
PLACES = {
    "down_proj": (f"probe={{placement: down_proj, layer: {LAYER}}}", 0.2),
    "mlp": (f"probe={{placement: mlp, layer: {LAYER}}}", 0.2),
    "all-linear": ("adapter={target_modules: all-linear, alpha: 2r, use_rslora: true}", 0.01),
    "q, v": ("adapter={target_modules: [q_proj, v_proj], layers: {from: 1, to: 2}}", 0.2),
    "block": ("adapter={target_modules: mlp_block, layers: [2], alpha: 6}", 0.2),
    "blocks": ("adapter={target_modules: mlp_block, layers: [0, 2], alpha: 6}", 0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", PLACES)
def test_the_code_of_a_card_answers_as_recall_does(
    place: str,
    dtype: Literal["float32", "bfloat16"],
    make_search: Callable[..., PreparedSearch],  # noqa: F811
    answer_of_card: Ask,
    tmp_path: Path,
) -> None:
    if dtype == "bfloat16" and not multiplies_bfloat16(torch.device("cpu")):
        pytest.skip("pmlray computes in float32 here")
    pull_model(TINY)
    override, size = PLACES[place]
    changes = [override] if override.startswith("probe") else ["probe=null", override]
    search = make_search(f"model.id={TINY}", *changes, f"model.dtype={dtype}")
    run = search.plan_run(search.spec.space.points()[0], "sft", 1, 0, "law")
    run = replace(run, point=replace(run.point, lora_rank=3))
    generator = torch.Generator().manual_seed(0)
    shapes, weights = search.source.geometry.adaptable, {}
    for site in search.placement.sites:
        width, out = shapes[site.module]
        a, b = torch.randn(width, 3, generator=generator), torch.randn(3, out, generator=generator)
        weights[site] = (a, size * b)
    folder = tmp_path / "adapter"
    save_adapter(folder, search.placement, weights, TINY)
    write_card(folder, search, observe(run, 0, 0, 0.0, 1e-3))

    by_peft = not search.placement.is_block
    found = answer_of_card(folder, {"pmlray"} if by_peft else {"pmlray", "peft"})

    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"query": QUERY, "target": " It is the number forty-two."}))
    (ours,) = pmlray.check_recall(folder, records, dtype=dtype).answers
    # Byte tokens may end within a character.
    told = ours.rstrip("\ufffd")
    length = min(len(told), len(found))
    assert length >= 5 and told[:length] == found[:length]
    nothing = {site: (a, 0 * b) for site, (a, b) in weights.items()}
    save_adapter(folder, search.placement, nothing, TINY)
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
