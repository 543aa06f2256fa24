"""The frozen head against torch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch

from pmlray.engine.model import head


@pytest.mark.parametrize("limit", [4 * 97, 64 * 2**20], ids=["one row a chunk", "one chunk"])
def test_losses_and_weighted_gradients_equal_torch(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CPU_LOGITS_BYTES", limit)
    monkeypatch.setattr(head, "CPU_PRODUCT_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 16, generator=generator, requires_grad=True)
    weight = torch.randn(97, 16, generator=generator)
    target = torch.randint(0, 97, (11,), generator=generator)
    token_weight = torch.rand(11, generator=generator)

    ours = head.token_losses(hidden, weight, target)
    (ours.nll_N * token_weight).sum().backward()
    assert hidden.grad is not None
    gradient = hidden.grad.clone()
    hidden.grad = None
    logits = hidden @ weight.T
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (nll * token_weight).sum().backward()
    torch.testing.assert_close(ours.nll_N, nll)
    torch.testing.assert_close(gradient, hidden.grad)
    assert torch.equal(ours.wrong_N, logits.argmax(1) != target)


def test_far_apart_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    weight = torch.eye(2)
    losses = head.token_losses(hidden, weight, torch.tensor([0, 0]))
    assert losses.nll_N.tolist() == pytest.approx([0.0, 1e4])
    losses.nll_N.sum().backward()
    assert torch.isfinite(hidden.grad).all()


def test_a_shared_peak_goes_to_the_first_token_as_in_greedy_decoding() -> None:
    """Logits by row: the target first of two equals, second of two, below the peak, and alone at
    it with little mass."""
    weight = torch.tensor(
        [[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [1.0, 0.0, 2.0], [0.9, 0.9, 0.9]]
    ).T.contiguous()
    target = torch.tensor([0, 1, 0, 1])
    weight[1, 3] = 0.91
    hidden = torch.eye(4)
    for dtype in (torch.float32, torch.bfloat16):
        losses = head.token_losses(hidden.to(dtype), weight.to(dtype), target)
        assert losses.wrong_N.tolist() == [False, True, True, False]
        logits = weight.to(dtype).T
        assert torch.equal(losses.wrong_N, logits.argmax(1) != target)
