"""A base in bfloat16 on a CPU with and without instructions for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
import torch

from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.device import multiplies_bfloat16

CPU = torch.device("cpu")


def has(monkeypatch: pytest.MonkeyPatch, capabilities: Mapping[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


def load(dtype: Literal["float32", "bfloat16"]) -> BaseModel:
    return load_base_model(
        TINY, resolve_model(TINY, None), None, dtype, (Probe(layer=1).to_placement(),), CPU
    )


@pytest.mark.parametrize(
    ("capabilities", "multiplies"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_which_devices_multiply_bfloat16(
    capabilities: Mapping[str, bool], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert multiplies_bfloat16(CPU) is multiplies
    assert multiplies_bfloat16(torch.device("cuda"))
    # Without oneDNN torch has no use for the instructions.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bfloat16(CPU)


def test_without_the_instructions_the_same_weights_are_computed_in_float32(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, {"avx512_bf16": True})
    rounded, exact = load("bfloat16"), load("float32")
    has(monkeypatch, {"avx2": True})
    found = load("bfloat16")
    assert {p.dtype for p in rounded.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    theirs = dict(rounded.model.named_parameters())
    for name, values in found.model.named_parameters():
        assert torch.equal(values, theirs[name].float()), name
    # What was rounded stays so.
    assert not torch.equal(found.head_weight, exact.head_weight)
    assert torch.equal(load("float32").head_weight, exact.head_weight)
