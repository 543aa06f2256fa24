"""Weights in host memory are brought in for their module's call alone, and change nothing.

Copies stand for what lies on a GPU: every one is counted for as long as it is alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from pmlray.config.search_spec import Probe
from pmlray.engine.model.base_model import BaseModel, freeze_base
from pmlray.engine.model.cpu_offload import HostedWeights
from pmlray.engine.model.fast_base import FastBase


class Device:
    """Counts the bytes that were brought in and are still there."""

    def __init__(self) -> None:
        self.brought = self.there = self.most = 0

    def bring(self, weight: Tensor) -> Tensor:
        copy = weight.clone()
        size = copy.untyped_storage().nbytes()
        self.brought += 1
        self.there += size
        self.most = max(self.most, self.there)
        # The storage, as a tensor's .data is another object each time.
        weakref.finalize(copy.untyped_storage(), self._freed, size)
        return copy

    def _freed(self, size: int) -> None:
        self.there -= size


def hosted_on(base: BaseModel, device: Device) -> BaseModel:
    body = base.model.model
    modules = (body.embed_tokens, *body.layers[: base.first_trained_layer])
    weights = {module: list(module.parameters()) for module in modules}
    return FastBase(
        base.model, base.tokenizer, base.placements, HostedWeights(weights, device.bring)
    )


def test_the_prefix_is_the_same_and_holds_one_module_at_a_time(
    fresh_tiny: Callable[..., BaseModel],
) -> None:
    base, device = fresh_tiny(), Device()
    ids = torch.randint(2, 250, (3, 17), generator=torch.Generator().manual_seed(0))
    expected = base.run_prefix(ids)
    hashed = base.prefix_hash
    base = hosted_on(base, device)
    body = base.model.model
    for _ in range(2):
        for mine, other in zip(base.run_prefix(ids), expected, strict=True):
            assert torch.equal(mine, other)
        assert device.there == 0
    sizes = [_bytes(module) for module in (body.embed_tokens, *body.layers[:3])]
    assert device.most == max(sizes)
    assert base.prefix_hash == hashed


def test_generation_brings_each_in_once(fresh_tiny: Callable[..., BaseModel]) -> None:
    base, device = fresh_tiny(), Device()
    prompt = torch.tensor([[5, 7, 11]])
    shift = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def told(base: BaseModel) -> list[int]:
        with base.with_adapter(lambda _site, x: 3 * shift.expand_as(x)):
            return base.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
            ).tolist()

    expected = told(base)
    base = hosted_on(base, device)
    assert told(base) == expected
    assert device.brought == sum(
        len(list(module.parameters()))
        for module in (
            base.model.model.embed_tokens,
            *base.model.model.layers[: base.first_trained_layer],
        )
    )
    assert device.there == 0


class Fails(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_a_call_that_fails_lets_go_and_the_next_brings_in_anew() -> None:
    device, module = Device(), Fails(3, 3)
    home = module.weight.data_ptr()
    HostedWeights({module: [module.weight]}, device.bring)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            module(torch.ones(3))
    assert (device.brought, device.there) == (2, 0)
    assert module.weight.data_ptr() == home


def test_only_what_steps_need_goes_to_the_device() -> None:
    """A stand-in for a GPU that holds no values; tests/gpu has the rest."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    base = freeze_base(model, None, (Probe(layer=1).to_placement(),), torch.device("meta"))
    body = model.model
    for module in (body.embed_tokens, *body.layers[:2]):
        assert {p.device.type for p in module.parameters()} == {"cpu"}
    steps = [*body.layers[2:].parameters(), *body.norm.parameters(), *model.lm_head.parameters()]
    assert {p.device.type for p in (*steps, *body.rotary_emb.buffers())} == {"meta"}
    assert base.device.type == "meta"


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
