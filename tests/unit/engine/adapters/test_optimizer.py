"""PackedAdamW is one torch.optim.AdamW an adapter."""

from __future__ import annotations

import pytest
import torch

from pmlray.engine.adapters import optimizer
from pmlray.engine.adapters.optimizer import PackedAdamW


@pytest.mark.parametrize("sizes", [[3], [1, 2], [2, 1]], ids=str)
@pytest.mark.parametrize("part_bytes", [2**20, 2 * 4 * 2 * 4, 1], ids=["all", "two", "each"])
def test_each_adapter_moves_as_under_its_own_adamw(
    part_bytes: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, two at a time (the last alone), and one by one; in one group and in two."""
    monkeypatch.setattr(optimizer, "CPU_PART_BYTES", part_bytes)
    generator = torch.Generator().manual_seed(1)
    n, rates, sums = 3, [1e-2, 3e-3, 1e-1], [1.0, 4.0, 0.5]
    start = torch.randn(n, 4, 2, generator=generator)
    packed = [torch.nn.Parameter(part.clone()) for part in start.split(sizes)]
    ours = PackedAdamW([{"params": [p]} for p in packed], clip_norm=1.0, weight_decay=0.1)
    alone = [torch.nn.Parameter(start[i].clone()) for i in range(n)]
    theirs = [
        torch.optim.AdamW([p], lr=lr, weight_decay=0.1) for p, lr in zip(alone, rates, strict=True)
    ]
    for step in range(8):
        gradient = torch.randn(n, 4, 2, generator=generator) * (10.0 if step % 2 else 0.1)
        # Adapter 1 has no active token in step 3: it must not move at all, nor count the step.
        weight_sum = torch.tensor([0.0 if (i, step) == (1, 3) else sums[i] for i in range(n)])
        # What does not move is not even touched by what is no number.
        given = torch.where(weight_sum[:, None, None] == 0, float("nan"), gradient)
        for p, part in zip(packed, given.split(sizes), strict=True):
            p.grad = part.clone()
        ours.prepare(torch.tensor(rates), weight_sum)
        ours.step()
        for i in range(n):
            if weight_sum[i] == 0:
                continue
            alone[i].grad = gradient[i] / weight_sum[i]
            torch.nn.utils.clip_grad_norm_([alone[i]], 1.0)
            theirs[i].step()
    for i in range(n):
        torch.testing.assert_close(torch.cat(packed)[i], alone[i], rtol=1e-5, atol=1e-7)
