"""What a base in bfloat16 may change of delta_loss, by either way of attending on a CPU, and where
a CPU computes it in float32."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.kernels.row_attention import CPU_SHORT_LENGTH
from pmlray.engine.model import base_model
from pmlray.engine.model.base_model import load_base_model
from tests.unit.engine.conftest import make_run, random_record, train

# Of delta_loss, stated in scripts/bench/results/precision.md. Tens of steps: over thousands, runs
# drift as two seeds do.
TOLERANCE = 0.02
PROMPT = 5
SHORT, LONG = CPU_SHORT_LENGTH - PROMPT, CPU_SHORT_LENGTH + 50


def delta_losses(
    dtype: Literal["float32", "bfloat16"], placement: Literal["mlp", "down_proj"]
) -> list[float]:
    probe = Probe(placement=placement, layer=1)
    source = resolve_model(TINY, None)
    base = load_base_model(TINY, source, None, dtype, (probe.to_placement(),), torch.device("cpu"))
    runs = [make_run(2, SHORT, 40), make_run(8, LONG, 40, "memft_ot", 1)]
    runs.append(make_run(8, SHORT, 40, "sft", 2))
    records = [[random_record(r.point.seq_len, r.seed, PROMPT)] for r in runs]
    members = train(base, runs, records, Recipe(learning_rate=1e-2)).members
    trained = [members[i] for i in range(len(runs))]
    return [m.curve[0][1] - m.scores.mean_nll for m in trained]


@cache
def exact_losses(placement: Literal["mlp", "down_proj"]) -> list[float]:
    """Of a base in float32, which no instruction for bfloat16 changes."""
    return delta_losses("float32", placement)


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_delta_loss_in_bfloat16_is_that_in_fp32(
    placement: Literal["mlp", "down_proj"],
    instructions: bool,
    tiny_folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base_model, "multiplies_bfloat16", lambda _device: instructions)
    exact, found = exact_losses(placement), delta_losses("bfloat16", placement)
    assert found == pytest.approx(exact, rel=TOLERANCE)
    # So that the tolerance is one of something learnt.
    assert min(exact) > 0.2
