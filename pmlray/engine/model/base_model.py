"""The frozen base model, split below the lowest adapted layer.

What lies below is the prefix: no adapter changes it, so it runs once per text. Where an adapter has
one site whose output is added to its layer's own (the paper's probe, or one `down_proj`), that
layer too is of the prefix, which then gives the site's input as well.

Shapes: B rows, T positions, D hidden size, X width of the kept site's input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pmlray.config.bases.models import ModelSource
from pmlray.config.placement import MLP_BLOCK, Placement, Site
from pmlray.engine.kernels.compiled_mlp import compile_mlps
from pmlray.engine.kernels.frozen_norm import FrozenRMSNorm, FusedRMSNorm, freeze_norms
from pmlray.engine.kernels.row_attention import RowAttention, RowGroups
from pmlray.engine.model.checkpoint import folder_of, load_tokenizer, load_weights
from pmlray.engine.model.cpu_offload import HostedWeights, nothing_hosted
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.engine.model.sites import Delta, SiteDeltas, adapt_sites, site_shapes
from pmlray.errors import ModelError


class LayerInputs(NamedTuple):
    """Outputs of the prefix: that of its last layer, and the kept site's input.

    Without a kept site the latter has no columns.
    """

    hidden_BTD: Tensor
    adapter_in_BTX: Tensor


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer and the place of its adapters.

    hosted: the weights of the prefix that are kept in host memory. deltas: what the sites above
    the prefix add to their outputs at the moment. site_shapes: input and output width of every
    site, where the base is to be trained.
    """

    # Typed as Any: a transformers model is built at run time, so the type checker cannot see it.
    model: Any
    tokenizer: Any
    placement: Placement
    hosted: HostedWeights = field(default_factory=nothing_hosted)
    deltas: SiteDeltas = field(default_factory=SiteDeltas)
    site_shapes: Mapping[Site, tuple[int, int]] = field(default_factory=dict[Site, tuple[int, int]])

    @property
    def device(self) -> torch.device:
        """Device of the head's weights, on which steps run."""
        return self.head_weight.device

    @property
    def prefix(self) -> tuple[Any, ...]:
        """The embeddings and the layers of the prefix."""
        body = self.model.model
        return (body.embed_tokens, *body.layers[: self.placement.first_trained_layer])

    @property
    def suffix_layers(self) -> Any:
        """The layers above the prefix."""
        return self.model.model.layers[self.placement.first_trained_layer :]

    @cached_property
    def prefix_hash(self) -> str:
        """Hash of the config and of the prefix's weights in memory, names and values."""
        digest = hashlib.sha256()
        for module in self.prefix:
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

    def module_at(self, site: Site) -> nn.Module:
        """Return the module at a site."""
        return self.model.model.layers[site.layer].get_submodule(site.module)

    @torch.no_grad()
    def run_prefix(self, ids_BT: Tensor) -> LayerInputs:
        """Run the prefix on right-padded token ids, (B, T).

        Attention is causal, so padding changes no real position.
        """
        body, kept = self.model.model, self.placement.kept_site
        embed, *layers = self.prefix
        hidden = embed(ids_BT)
        positions = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        rotary = body.rotary_emb(hidden, position_ids=positions)
        seen: list[Tensor] = []
        with ExitStack() as stack:
            if kept is not None:
                hook = self.module_at(kept).register_forward_pre_hook(
                    lambda _module, args: seen.append(args[0])
                )
                stack.callback(hook.remove)
            for layer in layers:
                hidden = layer(hidden, position_embeddings=rotary)
        return LayerInputs(hidden, seen[0] if seen else hidden[..., :0])

    def run_suffix(self, hidden_TD: Tensor, positions_T: Tensor, groups: RowGroups) -> Tensor:
        """Run the suffix and the final norm on the prefix's (adapted) output; return (T, D).

        The T positions are rows laid end to end; groups: their (rows, length), in order.
        """
        body = self.model.model
        hidden = hidden_TD[None]
        rotary = body.rotary_emb(hidden, position_ids=positions_T[None])
        for layer in self.suffix_layers:
            hidden = layer(hidden, position_embeddings=rotary, row_groups=groups)
        return body.norm(hidden)[0]

    @contextmanager
    def with_adapter(self, delta: Delta) -> Generator[None]:
        """Add `delta(site, its input)` at every site in ordinary forward and generate calls.

        At a kept site it is added to the output of the site's layer, as in training.
        """
        with ExitStack() as stack:
            stack.enter_context(self.hosted.held())
            kept = self.placement.kept_site
            if kept is None:
                stack.enter_context(self.deltas.of(delta))
            else:
                seen: list[Tensor] = []

                def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                    seen.append(args[0])

                def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
                    return output + delta(kept, seen.pop()).to(output.dtype)

                layer = self.model.model.layers[kept.layer]
                stack.callback(self.module_at(kept).register_forward_pre_hook(keep).remove)
                stack.callback(layer.register_forward_hook(add).remove)
            yield


def load_base_model(
    model_id: str,
    source: ModelSource,
    revision: str | None,
    dtype: Literal["float32", "bfloat16"],
    placement: Placement,
    device: torch.device,
) -> BaseModel:
    """Load a base model and freeze it.

    Args:
        model_id: pulled name, Hugging Face hub id or folder; used for the hub and in errors.
        source: the model's resolved files; without a folder it is loaded from the hub.
        revision: revision on the hub; None: its default.
        dtype: of the weights, and of the arithmetic where the device supports it; a CPU without
            bfloat16 instructions computes in float32 with the same (rounded) weights.
        placement: sites of the adapters.
        device: where steps run; the prefix may stay in host memory.

    Returns:
        The base, ready for steps.

    Raises:
        ModelError: it cannot be loaded, its family is not supported, or it lacks an adapted layer.
    """
    model, tokenizer = load_plain_model(model_id, source, revision, dtype, device)
    check_layers(placement, model.config.num_hidden_layers)
    return freeze_base(model, tokenizer, placement, device)


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


def freeze_base(
    model: Any, tokenizer: Any, placement: Placement, device: torch.device
) -> BaseModel:
    """Freeze a loaded model and prepare it for steps.

    The layers above the prefix get the adapters' sites, attention over rows and frozen norms, and
    on a GPU compiled MLPs where none of their modules is adapted. Of a model in host memory only
    the parts that steps need are moved to another device.
    """
    model.requires_grad_(False)
    model.eval()
    base, body = BaseModel(model, tokenizer, placement), model.model
    shapes = site_shapes(body.layers, placement.sites, model.config.hidden_size)
    suffix = base.suffix_layers
    if placement.kept_site is None:
        adapt_sites(body.layers, placement.sites, base.deltas)
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
        for module in base.prefix
    }
    hosted = HostedWeights(prefix, lambda weight: weight.to(device))
    adapted = {s.layer for s in placement.sites if s.module.partition(".")[0] == MLP_BLOCK}
    whole = [
        layer for n, layer in enumerate(suffix, placement.first_trained_layer) if n not in adapted
    ]
    if device.type == "cuda" and whole:
        compile_mlps(whole, model.config.hidden_size)
    return replace(base, hosted=hosted, site_shapes=shapes)


LoadBase = Callable[[str, ModelSource, str | None, Any, Placement, torch.device], BaseModel]


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
        placement: Placement,
        device: torch.device,
    ) -> BaseModel:
        """Return the base, loading it unless it is the cached one."""
        what = (model_id, source, revision, dtype, placement, device)
        if self._base is None or what != self._what:
            # Free the old base first: two may not fit in memory.
            self._base = None
            self._base, self._what = load_base_model(*what), what
        return self._base


def check_layers(placement: Placement, n_layers: int) -> None:
    """Check that the base has every adapted layer; ModelError otherwise."""
    if placement.layers[-1] >= n_layers:
        raise ModelError(
            f"the adapter sits at layer {placement.layers[-1]}, but the base has layers 0 to"
            f" {n_layers - 1}"
        )


__all__ = [
    "BaseModel",
    "LayerInputs",
    "freeze_base",
    "load_base_model",
]
