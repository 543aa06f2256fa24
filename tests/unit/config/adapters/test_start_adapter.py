"""Adapters that runs begin with: what is read of them, and that all else is refused by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pmlray.config.adapters.placement import Site
from pmlray.config.adapters.start_adapter import StartAdapter, read_start
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.errors import ModelError
from tests.starts import ALPHA, AT, RANK, factors, name_of, save_start

WEIGHTS = "adapter_model.safetensors"
SEARCHES = Path(__file__).parents[4] / "searches"
Q = name_of(1, "self_attn.q_proj", "A")


def read(folder: Path) -> StartAdapter:
    return read_start(folder, Model(id=TINY, dtype="float32"), resolve_model(TINY, None))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as told:
        read(folder)
    assert str(told.value).startswith(f"{folder}:") or str(folder) in str(told.value)
    return str(told.value)


def test_sites_rank_and_scale_are_the_adapters(tmp_path: Path) -> None:
    start = read(save_start(tmp_path, fan_in_fan_out=True, init_lora_weights="gaussian"))
    assert start.placement.sites == AT.sites and start.lora_rank == RANK
    # The scale of every rank is that of the old columns, so that they go on as they were.
    assert [start.placement.scale(rank) for rank in (RANK, 5, 64)] == [ALPHA / RANK] * 3
    assert start.sha256 == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert start.names[AT.sites[0]] == (Q, Q.replace("lora_A", "lora_B"))
    rslora = read(save_start(tmp_path / "rslora", use_rslora=True, use_future=None))
    assert rslora.placement.scale(7) == pytest.approx(ALPHA / RANK**0.5)
    assert "q_proj, down_proj of layers 1, 3, alpha 3r, from an adapter of rank 2" in (
        start.describe()
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, 'peft_type: "LOHA"'),
        ({"peft_type": ...}, "no peft_type"),
        ({"task_type": "SEQ_CLS"}, 'task_type: "SEQ_CLS"'),
        ({"bias": "all"}, 'bias: "all"'),
        ({"use_dora": True}, "use_dora: true"),
        ({"rank_pattern": {"q_proj": 4}}, 'rank_pattern: {"q_proj": 4}'),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights: "pissa"'),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"exclude_modules": ["k_proj"]}, "exclude_modules"),
        ({"use_future": 3}, "use_future: 3"),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"]}, "'lm_head', which is no linear"),
        ({"target_modules": r".*(1\.self_attn\.q|3\.self_attn\.k)_proj",
          "layers_to_transform": ...}, "do not all have the same adapted modules"),
        ({"layers_to_transform": [1, 2, 3]}, "lack base_model.model.model.layers.2"),
        ({"layers_to_transform": [1]}, "does not place in the base: base_model.model.model.lay"),
        ({"layers_to_transform": [7]}, "'q_proj', which is no linear module of its layers"),
        ({"r": 4}, "ask for [4, 64]"),
        ({"lora_alpha": 0}, "the scale 0, which is no number above 0"),
        ({"lora_alpha": float("inf")}, "the scale inf, which is no number above 0"),
        ({"lora_alpha": -1}, "the scale -0.5"),
        ({"r": ...}, "KeyError('r')"),
        ({"lora_alpha": "4"}, "lora_alpha '4'"),
        ({"r": True}, "r True"),
        ({"target_modules": "("}, "cannot be read"),
        ({"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}, "names meta-llama/Llama-3.1-8B"),
        ({"base_model_name_or_path": None}, "names no base model"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_is_not_followed_in_full_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refusal(save_start(tmp_path, **changes))


def bits(kind: str, **values: int) -> Callable[[Path], None]:
    """Sets the first number of a tensor to some bits, in a file of another dtype."""

    def change(file: Path) -> None:
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        data, end = bytearray(), 0
        for name in sorted(header):
            size = int(np.prod(header[name]["shape"]))
            numbers = np.zeros(size, "<u4" if kind == "F32" else "<u2")
            numbers[0] = values.get("first", 0) if name == Q else 0
            begin, end = end, end + numbers.nbytes
            header[name] |= {"dtype": kind, "data_offsets": [begin, end]}
            data += numbers.tobytes()
        told = json.dumps(header).encode()
        file.write_bytes(len(told).to_bytes(8, "little") + told + data)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (bits("F32", first=0x7FC00000), f"not all numbers are finite in {Q}"),
        (bits("F32", first=0xFF800000), f"not all numbers are finite in {Q}"),
        (bits("BF16", first=0x7F80), f"not all numbers are finite in {Q}"),
        (bits("F16", first=0x7C01), f"not all numbers are finite in {Q}"),
        (lambda file: file.write_bytes(file.read_bytes()[:-4]), "no whole safetensors file"),
        (lambda file: file.write_bytes(b"no tensors"), "no whole safetensors file"),
        (Path.unlink, "it needs adapter_model.safetensors"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    change: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    change(save_start(tmp_path) / WEIGHTS)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_half_precision_is_read(kind: str, tmp_path: Path) -> None:
    bits(kind, first=0x3F80)(save_start(tmp_path) / WEIGHTS)
    assert read(tmp_path).placement.sites == AT.sites


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((RANK, 63), np.float32), "asks"),
        (np.zeros((RANK, 64), np.float64), "is F64"),
        (np.zeros((RANK, 64), np.int32), "is I32"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(values: Any, says: str, tmp_path: Path) -> None:
    told = refusal(save_start(tmp_path, factors() | {Q: values}))
    assert Q in told and says.replace("asks", "ask for [2, 64]") in told


def test_what_the_weights_have_beside_is_refused(tmp_path: Path) -> None:
    more = {"base_model.model.lm_head.weight": np.zeros((512, 64), np.float32)}
    assert "base_model.model.lm_head.weight" in refusal(save_start(tmp_path, factors() | more))
    fewer = {name: values for name, values in factors().items() if name != Q}
    assert f"lack {Q}" in refusal(save_start(tmp_path, fewer))


def test_a_folder_without_an_adapter_says_what_to_give(tmp_path: Path) -> None:
    assert "give the folder of an adapter" in refusal(tmp_path / "nothing")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickled")
    (tmp_path / "adapter_config.json").write_text("[1]")
    assert "adapter_model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer": 4}, "layers 0 to 3"),
        ({"layer": -1}, "layers 0 to 3"),
        ({"lora_rank": 3}, "A is F32 [64, 2]; the base and the config ask for [64, 3]"),
        ({"scale": 0}, "the scale 0"),
        ({"placement": "attention"}, "not as pmlray writes it"),
        ({"more": 1}, "not as pmlray writes it"),
        ({"base_model": "another"}, "names another as its base"),
    ],
)
def test_pmlrays_own_adapter_of_the_papers_block(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = {"base_model": TINY, "placement": "mlp", "layer": 1, "lora_rank": 2, "scale": 0.5}
    (tmp_path / "pmlray_adapter.json").write_text(json.dumps(config))
    save_file({"A": np.ones((64, 2), np.float32), "B": np.ones((2, 64), np.float32)},
              tmp_path / WEIGHTS)  # fmt: skip
    start = read(tmp_path)
    assert start.placement.sites == (Site(1, "mlp"),) and start.placement.scale(9) == 0.5
    (tmp_path / "pmlray_adapter.json").write_text(json.dumps(config | changes))
    assert says in refusal(tmp_path)


def test_its_card_tells_the_base_where_its_name_does_not(tmp_path: Path) -> None:
    save_start(tmp_path, base_model_name_or_path="/another/machine/base")
    assert "names /another/machine/base" in refusal(tmp_path)
    base = {"id": TINY, "revision": None, "identity": TINY, "dtype": "float32"}
    card: dict[str, Any] = {"base_model": base, "prompt_format": "plain"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert read(tmp_path).lora_rank == RANK
    base["identity"] = "another"
    save_start(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert "names another as its base" in refusal(tmp_path)
