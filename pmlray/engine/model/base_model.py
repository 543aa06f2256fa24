"""The frozen base model, split at the adapted layer k into blocks 0..k and everything above.

Shapes: B rows, T positions, D hidden size, X width of the adapter's input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pmlray.config.bases.models import ModelSource
from pmlray.config.search_spec import Probe
from pmlray.engine.kernels.compiled_mlp import compile_mlps
from pmlray.engine.kernels.frozen_norm import FrozenRMSNorm, FusedRMSNorm, freeze_norms
from pmlray.engine.kernels.row_attention import RowAttention, RowGroups
from pmlray.engine.model.checkpoint import folder_of, load_tokenizer, load_weights
from pmlray.engine.model.cpu_offload import HostedWeights, nothing_hosted
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.errors import ModelError


class LayerInputs(NamedTuple):
    """Outputs of the frozen part: block k's output and the adapter's input."""

    hidden_BTD: Tensor
    adapter_in_BTX: Tensor


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer and the place of the adapter.

    hosted: the weights of the embeddings and of blocks 0..k that are kept in host memory.
    """

    # Typed as Any: a transformers model is built at run time, so the type checker cannot see it.
    model: Any
    tokenizer: Any
    probe: Probe
    hosted: HostedWeights = field(default_factory=nothing_hosted)

    @property
    def device(self) -> torch.device:
        """Device of the head's weights, on which steps run."""
        return self.head_weight.device

    @cached_property
    def prefix_hash(self) -> str:
        """Hash of the config and of the embeddings and blocks 0..k in memory, names and values."""
        digest = hashlib.sha256()
        body = self.model.model
        for module in (body.embed_tokens, *body.layers[: self.probe.layer + 1]):
            for name, values in module.named_parameters():
                digest.update(f"{name}:{tuple(values.shape)}:{values.dtype}\n".encode())
                digest.update(values.detach().cpu().contiguous().view(torch.uint8).numpy())
        config = self.model.config.to_diff_dict()
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    @property
    def head_weight(self) -> Tensor:
        """Weight of the language-model head, (vocabulary, D)."""
        return self.model.lm_head.weight

    @property
    def adapted_layer(self) -> nn.Module:
        """Decoder layer k."""
        return self.model.model.layers[self.probe.layer]

    @property
    def adapter_width(self) -> int:
        """Width X of the adapter's input: hidden size for `mlp`, intermediate for `down_proj`."""
        config = self.model.config
        return config.hidden_size if self.probe.placement == "mlp" else config.intermediate_size

    @property
    def adapter_input_module(self) -> nn.Module:
        """The module whose input is the adapter's input."""
        name = "mlp" if self.probe.placement == "mlp" else "mlp.down_proj"
        return self.adapted_layer.get_submodule(name)

    @torch.no_grad()
    def run_prefix(self, ids_BT: Tensor) -> LayerInputs:
        """Run blocks 0..k on right-padded token ids, (B, T).

        Attention is causal, so padding changes no real position.
        """
        body = self.model.model
        hidden = body.embed_tokens(ids_BT)
        positions = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        rotary = body.rotary_emb(hidden, position_ids=positions)
        seen: list[Tensor] = []
        hook = self.adapter_input_module.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0])
        )
        try:
            for layer in body.layers[: self.probe.layer + 1]:
                hidden = layer(hidden, position_embeddings=rotary)
        finally:
            hook.remove()
        return LayerInputs(hidden, seen[0])

    def run_suffix(self, hidden_TD: Tensor, positions_T: Tensor, groups: RowGroups) -> Tensor:
        """Run blocks k+1.. and the final norm on block k's (adapted) output; return (T, D).

        The T positions are rows laid end to end; groups: their (rows, length), in order.
        """
        body = self.model.model
        hidden = hidden_TD[None]
        rotary = body.rotary_emb(hidden, position_ids=positions_T[None])
        for layer in body.layers[self.probe.layer + 1 :]:
            hidden = layer(hidden, position_embeddings=rotary, row_groups=groups)
        return body.norm(hidden)[0]

    @contextmanager
    def with_adapter(self, delta: Callable[[Tensor], Tensor]) -> Generator[None]:
        """Add `delta(adapter input)` to block k's output in ordinary forward and generate calls."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])

        def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return output + delta(seen.pop()).to(output.dtype)

        hooks = [
            self.adapter_input_module.register_forward_pre_hook(keep),
            self.adapted_layer.register_forward_hook(add),
        ]
        try:
            with self.hosted.held():
                yield
        finally:
            for hook in hooks:
                hook.remove()


def load_base_model(
    model_id: str,
    source: ModelSource,
    revision: str | None,
    dtype: Literal["float32", "bfloat16"],
    probe: Probe,
    device: torch.device,
) -> BaseModel:
    """Load a base model and freeze it.

    Args:
        model_id: pulled name, Hugging Face hub id or folder; used for the hub and in errors.
        source: the model's resolved files; without a folder it is loaded from the hub.
        revision: revision on the hub; None: its default.
        dtype: of the weights, and of the arithmetic where the device supports it; a CPU without
            bfloat16 instructions computes in float32 with the same (rounded) weights.
        probe: placement and layer of the adapter.
        device: where steps run; blocks 0..k may stay in host memory.

    Returns:
        The base, ready for steps.

    Raises:
        ModelError: it cannot be loaded, its family is not supported, or it lacks the probe's layer.
    """
    model, tokenizer = load_plain_model(model_id, source, revision, dtype, device)
    check_layer(probe, model.config.num_hidden_layers)
    return freeze_base(model, tokenizer, probe, device)


def load_plain_model(
    model_id: str,
    source: ModelSource,
    revision: str | None,
    dtype: Literal["float32", "bfloat16"],
    device: torch.device,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer as transformers has them, in host memory.

    Args:
        model_id, source, revision, dtype, device: as for `load_base_model`.

    Returns:
        The model, none of its modules replaced, and the tokenizer.

    Raises:
        ModelError: it cannot be loaded, or its family is not supported.
    """
    folder = folder_of(model_id, source, revision)
    tokenizer = load_tokenizer(model_id, folder, source.geometry.vocab)
    model = load_weights(model_id, folder, dtype, attn_implementation="sdpa")
    if dtype == "bfloat16" and not multiplies_bfloat16(device):
        model.float()
    return model, tokenizer


def freeze_base(model: Any, tokenizer: Any, probe: Probe, device: torch.device) -> BaseModel:
    """Freeze a loaded model and prepare it for steps.

    The layers above the adapter get attention over rows and frozen norms, and on a GPU compiled
    MLPs. Of a model in host memory only the parts that steps need are moved to another device.
    """
    model.requires_grad_(False)
    model.eval()
    body, above = model.model, probe.layer + 1
    suffix = body.layers[above:]
    for layer in suffix:
        layer.self_attn = RowAttention(layer.self_attn)
    frozen = FrozenRMSNorm if device.type == "cpu" else FusedRMSNorm
    freeze_norms(suffix, frozen)
    body.norm = frozen(body.norm)
    for module in (body.rotary_emb, suffix, body.norm, model.lm_head):
        module.to(device)
    # Leaves out embeddings tied to the head, which are on the device already.
    there = model.lm_head.weight.device
    prefix = {
        module: [weight for weight in module.parameters() if weight.device != there]
        for module in (body.embed_tokens, *body.layers[:above])
    }
    hosted = HostedWeights(prefix, lambda weight: weight.to(device))
    if device.type == "cuda" and len(suffix):
        compile_mlps(suffix, model.config.hidden_size)
    return BaseModel(model, tokenizer, probe, hosted)


LoadBase = Callable[[str, ModelSource, str | None, Any, Probe, torch.device], BaseModel]


class KeptBase:
    """`load_base_model` with a cache of one base, for a process that measures several packs."""

    def __init__(self) -> None:
        self._what: tuple[Any, ...] | None = None
        self._base: BaseModel | None = None

    def __call__(
        self,
        model_id: str,
        source: ModelSource,
        revision: str | None,
        dtype: Any,
        probe: Probe,
        device: torch.device,
    ) -> BaseModel:
        """Return the base, loading it unless it is the cached one."""
        what = (model_id, source, revision, dtype, probe, device)
        if self._base is None or what != self._what:
            # Free the old base first: two may not fit in memory.
            self._base = None
            self._base, self._what = load_base_model(*what), what
        return self._base


def check_layer(probe: Probe, n_layers: int) -> None:
    """Check that the base has the probe's layer; ModelError otherwise."""
    if probe.layer >= n_layers:
        raise ModelError(
            f"probe.layer is {probe.layer}, but the base has layers 0 to {n_layers - 1}"
        )


__all__ = [
    "BaseModel",
    "LayerInputs",
    "freeze_base",
    "load_base_model",
]
