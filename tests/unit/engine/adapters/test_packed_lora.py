"""What the adapters of a pack add to their rows, against each adapter and row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import Block, Row, blocks_of, micro_batches
from pmlray.engine.model.prefix_cache import build_prefix_cache
from tests.unit.engine.conftest import random_record

RANKS = (3, 1, 2)


def test_blocks_keep_the_order_and_have_equally_many_rows_of_each() -> None:
    rows = [(0, 9), (0, 9), (1, 9), (1, 9), (2, 9), (0, 7), (2, 7), (0, 7)]
    assert blocks_of(rows) == (Block((0, 1), 2, 9), Block((2,), 1, 9), Block((0, 2, 0), 1, 7))


@pytest.mark.parametrize(
    "counts",
    [
        [(2, 0), (2, 0), (2, 0)],
        [(1, 2), (1, 2), (1, 2)],
        [(2, 1), (1, 0), (1, 3)],
        [(0, 1), (0, 0), (1, 1)],
    ],
    ids=["one block of all", "two blocks of all", "blocks of some", "one adapter left out"],
)
@pytest.mark.parametrize("slots", [3, 5])
def test_rows_get_what_their_own_adapter_adds(
    tiny: Callable[..., BaseModel], counts: Sequence[tuple[int, int]], slots: int
) -> None:
    """counts: long and short rows of each adapter. With more slots than adapters no block has all
    of what is held."""
    base = tiny()
    # The last two of five are never in a step.
    ranks = (*RANKS, 1, 1)[:slots]
    lora = PackedLora(base, ranks, list(range(slots)))
    (own,) = lora.factors
    with torch.no_grad():
        for n, rank in enumerate(ranks):
            own.B[n, 0, :rank].normal_(generator=torch.Generator().manual_seed(n))
    long, short = build_prefix_cache(base, [random_record(12), random_record(6, 1)])
    rows = [
        Row(n, 0, record)
        for n, many in enumerate(counts)
        for record, count in zip((long, short), many, strict=True)
        for _ in range(count)
    ]
    (batch,) = micro_batches(rows)
    found = lora.on(batch, None)(base.placements[0].sites[0], batch.adapter_in_TX)
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(found.shape, generator=generator)
    grads = torch.autograd.grad(found, (own.A, own.B), upstream)
    expected = torch.cat(
        [row.record.adapter_in_TX.float() @ own.A[row.adapter, 0] @ own.B[row.adapter, 0]
         for row in batch.rows]
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for mine, true in zip(
        grads, torch.autograd.grad(expected, (own.A, own.B), upstream), strict=True
    ):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)


def test_adapters_are_found_where_one_has_taken_anothers_slot(
    tiny: Callable[..., BaseModel],
) -> None:
    base = tiny()
    lora = PackedLora(base, RANKS, [0, 1, 2], n_slots=2)
    (own,) = lora.factors
    assert lora.begin(2, inside={1}) == 0
    with torch.no_grad():
        own.B.normal_(generator=torch.Generator().manual_seed(0))
    (record,) = build_prefix_cache(base, [random_record(12)])
    (batch,) = micro_batches([Row(n, 0, record) for n in (1, 2)])
    x_TX = record.adapter_in_TX.float()
    expected = torch.cat([x_TX @ own.A[slot, 0] @ own.B[slot, 0] for slot in (1, 0)])
    found = lora.on(batch, None)(base.placements[0].sites[0], batch.adapter_in_TX)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
