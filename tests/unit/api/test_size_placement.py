"""Where `pmlray size` puts an adapter in bases of other families than Llama's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmlray.api.sizing.placement import asked_place
from pmlray.api.sizing.plan import SizeRequest
from pmlray.config import ClusterProfile
from pmlray.config.bases.geometry import OwnLayers
from pmlray.config.bases.models import KNOWN_MODELS, TINY
from pmlray.errors import SpecError
from pmlray.memory import RecordSource
from pmlray.study.sizing.request import Wanted

MODULES = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64)}
OWN = OwnLayers("transformer.h", MODULES, {"moe.experts": "its experts are one tensor"}, 99, False)
GEOMETRY = replace(KNOWN_MODELS[TINY], own=OWN)


def request(**options: Any) -> SizeRequest:
    base = SizeRequest(
        RecordSource(Path("facts.jsonl")), "theirs", None, "auto", Wanted(0.9, 0.9), None, None,
        None, None, None, None, None, ClusterProfile(),
    )  # fmt: skip
    return replace(base, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--placement: theirs's layers have no linear mlp.down_proj; they have attn.c_attn"),
        ({"placement": "mlp"}, "--placement: theirs's layers have no mlp; they have attn.c_attn"),
        ({"placement": "mlp_block", "layers": "all"}, "layers have no mlp; they have attn"),
        ({"placement": "experts"}, "moe.experts: its experts are one tensor"),
        ({"placement": "q_proj"}, "they have attn.c_attn, attn.c_proj"),
    ],
)
def test_what_a_base_lacks_is_refused_with_what_it_has(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        asked_place(request(**options), GEOMETRY)
    assert says in str(caught.value)


def test_all_linear_is_whatever_the_base_has() -> None:
    place = asked_place(request(placement="all-linear"), GEOMETRY)
    assert place.resolve(4, GEOMETRY.modules).params_per_rank(GEOMETRY.adaptable) == 4 * 384
