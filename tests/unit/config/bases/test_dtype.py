"""`model.dtype: auto`: what it becomes, and that searches begun before it keep dtype and id."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pmlray.api.stores import settled_in
from pmlray.cli import app
from pmlray.config import ClusterProfile
from pmlray.config.bases import dtype
from pmlray.config.bases.dtype import cpu_multiplies_bfloat16, settle
from pmlray.config.bases.model_spec import Model
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.errors import SpecError, StoreError
from pmlray.types import DesignPoint

# What pmlray kept of this file in its store, and called it, when the default was bfloat16 and no
# end was trained (commit 0cb20f9); the rate is the default of then.
FILE = """
name: before
task: {kind: phonebook, prompt_format: plain, end: false}
model: {id: tiny-random-llama}
probe: {layer: 1}
space: {lora_rank: [1, 2], seq_len: [16, 32], train_steps: [5, 10]}
design: {n_initial: 2, pack_size: 2}
recipe: {learning_rate: 0.01}
budget: {gpu_seconds: 100}
"""
KEPT = (
    '{"name":"before","task":{"kind":"phonebook","random_ratio":100,"data_seed":0,"key_prompt":'
    '"Please output the content of the vector memory injected into the activations.",'
    '"prompt_format":"plain","text":null,"records":null},"model":{"id":"tiny-random-llama",'
    '"revision":null,"dtype":"bfloat16"},"probe":{"placement":"mlp","layer":1},"space":{"lora_rank"'
    ':[1,2],"seq_len":[16,32],"train_steps":[5,10]},"recipe":{"learning_rate":0.01,"schedule":'
    '"warmup_constant_decay","warmup_steps":8,"decay_share":0.2,"batch_size":1,"dropout":0.0,'
    '"clip_norm":1.0,"weight_decay":0.0,"stop_loss":0.01,"stop_gain":0.02},"law":{"forms":'
    '["ceiling","exponential_ceiling"],"n_bootstrap":200,"loss":"gaussian","saturated":"filter",'
    '"floor":0.02,"noise":"equal","optimisation_limited":"keep"},"design":{"acquisition":'
    '"v_optimal","seed":0,"n_initial":2,"pack_size":2,"validation_share":0.2,"targets":null},'
    '"budget":{"gpu_hours":null,"gpu_seconds":100.0,"memft_gpu_hours":null,"memft_gpu_seconds":'
    'null},"stop":{"relative_interval":null},"memft":null,"evaluate":{"generate_max_tokens":256,'
    '"control_tokens":128,"prose":false},"sequences":[0,1],"seeds":[0]}'
)
ID, BFLOAT16_RUN = "before-ba4c70e7", "96b074b00ef92920"
FLOAT32_ID, FLOAT32_RUN = "before-35e79619", "f1c8e303e60166d5"


@pytest.fixture
def search(tmp_path: Path) -> PreparedSearch:
    """A search whose file says nothing of dtypes."""
    (tmp_path / "before.yaml").write_text(FILE)
    return prepare_search(tmp_path / "before.yaml")


def run_key(search: PreparedSearch) -> str:
    return search.plan_run(DesignPoint(1, 16, 5), "sft", 0, 0, "law").run_key


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    monkeypatch.setattr(dtype, "cpu_multiplies_bfloat16", lambda: multiplies)


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_search_begun_before_keeps_its_dtype_its_id_and_its_runs(
    search: PreparedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    on_a_cpu(monkeypatch, multiplies)
    (tmp_path / "search.json").write_text(KEPT)
    found = settled_in(tmp_path, search, ClusterProfile())
    assert (found.spec.search_id, run_key(found)) == (ID, BFLOAT16_RUN)


def test_a_dtype_that_is_named_gives_the_id_and_the_runs_that_it_gave(
    search: PreparedSearch, tmp_path: Path
) -> None:
    for name, search_id, run in (
        ("bfloat16", ID, BFLOAT16_RUN),
        ("float32", FLOAT32_ID, FLOAT32_RUN),
    ):
        named = prepare_search(tmp_path / "before.yaml", [f"model.dtype={name}"])
        assert (named.spec.search_id, run_key(named)) == (search_id, run)
        assert named.settled(gpu=True) == named


def test_a_new_search_follows_the_device_and_keeps_it_on_another(
    search: PreparedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"model\.dtype is auto"):
        run_key(search)
    on_a_cpu(monkeypatch, False)
    begun = settled_in(tmp_path, search, ClusterProfile())
    assert (begun.spec.search_id, run_key(begun)) == (ID, FLOAT32_RUN)
    (tmp_path / "search.json").write_text(begun.spec.model_dump_json())
    on_a_cpu(monkeypatch, True)
    assert settled_in(tmp_path, search, ClusterProfile()) == begun
    assert run_key(search.settled(gpu=False)) == BFLOAT16_RUN
    on_a_cpu(monkeypatch, False)
    assert settle(Model(id="x"), gpu=True).base_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("begun", "asked"),
    [
        ({"dtype": "auto", "resolved": "float32"}, "bfloat16"),
        # As a search is kept that was begun before there was `auto`, and one whose dtype is named.
        ({"dtype": "auto", "resolved": "bfloat16"}, "float32"),
        ({"dtype": "bfloat16"}, "float32"),
    ],
)
def test_a_store_is_not_continued_in_another_dtype(
    search: PreparedSearch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: dict[str, str],
    asked: str,
) -> None:
    """Not where both have one id, nor where the ids tell."""

    def started(_: object) -> None:
        raise AssertionError("it was continued")

    monkeypatch.setattr("pmlray.api.search_run.ray_session", started)
    folder = tmp_path / "store"
    folder.mkdir()
    model = Model.model_validate({"id": search.spec.model.id, **begun})
    spec = search.spec.model_copy(update={"model": model})
    (folder / "search.json").write_text(spec.model_dump_json())
    command = ["search", str(tmp_path / "before.yaml"), "--set", f"model.dtype={asked}",
               "--store", str(folder)]  # fmt: skip
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, StoreError), error
    named = prepare_search(tmp_path / "before.yaml", [f"model.dtype={asked}"]).spec
    if named.search_id == spec.search_id:
        words = f"of a base in {model.base_dtype}, not {asked}; leave model.dtype out to continue"
    else:
        words = f"holds the search {spec.search_id}, not {named.search_id}; choose another --store"
    assert words in str(error)
    assert (folder / "search.json").read_text() == spec.model_dump_json()
    assert not [*(folder / "observations").iterdir(), *(folder / "plans").iterdir()]


@pytest.mark.parametrize(
    ("text", "multiplies"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs : bf16\n", False),
        ("", False),
    ],
)
def test_instructions_are_read_from_what_linux_says(
    tmp_path: Path, text: str, multiplies: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bfloat16(tmp_path / "cpuinfo") == multiplies


def test_a_machine_without_that_file_multiplies_in_float32(tmp_path: Path) -> None:
    assert not cpu_multiplies_bfloat16(tmp_path / "none")


def test_it_is_what_torch_says_of_this_machine() -> None:
    assert cpu_multiplies_bfloat16() == multiplies_bfloat16(torch.device("cpu"))
