"""When a step that was taken twice came out the same."""

from __future__ import annotations

import torch

from pmlray.engine.kernels.numerics import difference


def test_a_difference_is_told_from_rounding() -> None:
    inf, nan = float("inf"), float("nan")
    before = {"a": torch.tensor([1.0, 5.0, nan, inf, inf])}
    after = {"a": torch.tensor([2.0, 5.0, nan, inf, 3.0])}
    assert difference(before, after, {"a": torch.tensor([2.01, 5.0, nan, inf, 3.0])}) is None
    for wrong in (
        [1.0, 5, nan, inf, 3],
        [2, 5, 0, inf, 3],
        [2, 5, nan, 1, 3],
        [2, 5, nan, inf, inf],
    ):
        assert "a is off by" in str(difference(before, after, {"a": torch.tensor(wrong)}))
    assert difference({}, {"n": torch.tensor([4])}, {"n": torch.tensor([4])}) is None
    assert difference({}, {"n": torch.tensor([4])}, {"n": torch.tensor([5])})
