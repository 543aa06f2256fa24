"""Loading and freezing of a base model, on the path that its family takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch

from pmlray.config.adapters.placement import MLP_BLOCK, Placement, Site, all_sites
from pmlray.config.bases.families import family_of
from pmlray.config.bases.models import ModelSource
from pmlray.config.bases.own_model import find_layers
from pmlray.engine.kernels.compiled_mlp import compile_mlps
from pmlray.engine.kernels.frozen_norm import NORMS, FrozenRMSNorm, FusedRMSNorm, freeze_norms
from pmlray.engine.kernels.row_attention import RowAttention
from pmlray.engine.model.checkpoint import folder_of, load_tokenizer, load_weights
from pmlray.engine.model.cpu_offload import HostedWeights
from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.engine.model.fast_base import FastBase
from pmlray.engine.model.frozen_base import BaseModel, LayerInputs
from pmlray.engine.model.general_base import GeneralBase
from pmlray.engine.model.sites import SiteDeltas, adapt_blocks, adapt_sites, site_shapes
from pmlray.errors import ModelError


def load_base_model(
    model_id: str,
    source: ModelSource,
    revision: str | None,
    dtype: Literal["float32", "bfloat16"],
    placements: tuple[Placement, ...],
    device: torch.device,
) -> BaseModel:
    """Load a base model and freeze it.

    Args:
        model_id: pulled name, Hugging Face hub id or folder; used for the hub and in errors.
        source: the model's resolved files; without a folder it is loaded from the hub.
        revision: revision on the hub; None: its default.
        dtype: of the weights, and of the arithmetic where the device supports it; a CPU without
            bfloat16 instructions computes in float32 with the same (rounded) weights.
        placements: those that its adapters may have, each once.
        device: where steps run; the prefix may stay in host memory.

    Returns:
        The base, ready for steps.

    Raises:
        ModelError: it cannot be loaded, its family is not supported, or it lacks an adapted layer.
    """
    model, tokenizer = load_plain_model(model_id, source, revision, dtype, device)
    check_layers(placements, model.config.num_hidden_layers)
    return freeze_base(model, tokenizer, placements, device)


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
    model = load_weights(model_id, folder, dtype)
    if dtype == "bfloat16" and not multiplies_bfloat16(device):
        model.float()
    return model, tokenizer


def freeze_base(
    model: Any, tokenizer: Any, placements: tuple[Placement, ...], device: torch.device
) -> BaseModel:
    """Freeze a loaded model and prepare it for steps, on the path that its family takes.

    Raises:
        ModelError: it cannot be run that way; see `GeneralBase.check`.
    """
    model.requires_grad_(False)
    model.eval()
    if family_of(model.config.to_dict(), type(model).__name__) is None:
        return _freeze_general(model, tokenizer, placements, device)
    return _freeze_fast(model, tokenizer, placements, device)


def _freeze_general(
    model: Any, tokenizer: Any, placements: tuple[Placement, ...], device: torch.device
) -> GeneralBase:
    """Prepare a model that runs as it is: its sites get adapters, and all of it is moved."""
    where = model.config.name_or_path or type(model).__name__
    path, layers = find_layers(model, model.config.num_hidden_layers, where)
    deltas, sites = SiteDeltas(), all_sites(placements)
    shapes = site_shapes(layers, sites, model.config.hidden_size)
    _adapt(layers, sites, deltas, adds_plainly=False)
    model.to(device)
    base = GeneralBase(
        model, tokenizer, placements, deltas=deltas, site_shapes=shapes, layers_path=path
    )
    base.check(sites, where)
    return base


def _adapt(layers: Any, sites: Iterable[Site], deltas: SiteDeltas, *, adds_plainly: bool) -> None:
    """Let the sites of decoder layers add their adapters' outputs.

    adds_plainly: whether an MLP's output is added to its layer's as it is.
    """
    blocks = [site for site in sites if site.module == MLP_BLOCK and not adds_plainly]
    adapt_sites(layers, [site for site in sites if site not in blocks], deltas)
    adapt_blocks(layers, blocks, deltas)


def _freeze_fast(
    model: Any, tokenizer: Any, placements: tuple[Placement, ...], device: torch.device
) -> FastBase:
    """Prepare a model of Llama's shape.

    The layers above the prefix get the adapters' sites, attention over rows and frozen norms, and
    on a GPU compiled MLPs where none of their modules is adapted. Of a model in host memory only
    the parts that steps need are moved to another device.
    """
    body, deltas, sites = model.model, SiteDeltas(), all_sites(placements)
    shapes = site_shapes(body.layers, sites, model.config.hidden_size)
    base = FastBase(model, tokenizer, placements, deltas=deltas, site_shapes=shapes)
    first, suffix = base.first_trained_layer, base.suffix_layers
    in_suffix = [site for site in sites if site not in base.kept_sites]
    _adapt(body.layers, in_suffix, deltas, adds_plainly=base.family.adds_plainly)
    for n, layer in enumerate(suffix, first):
        layer.self_attn = RowAttention(layer.self_attn, base.window_of(n))
    frozen = FrozenRMSNorm if device.type == "cpu" else FusedRMSNorm
    freeze_norms(suffix, frozen)
    if isinstance(body.norm, NORMS):
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
    adapted = {s.layer for s in sites if s.module.partition(".")[0] == MLP_BLOCK}
    whole = [layer for n, layer in enumerate(suffix, first) if n not in adapted]
    if device.type == "cuda" and whole:
        compile_mlps(whole, model.config.hidden_size)
    return replace(base, hosted=hosted)


LoadBase = Callable[
    [str, ModelSource, str | None, Any, tuple[Placement, ...], torch.device], BaseModel
]


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
        placements: tuple[Placement, ...],
        device: torch.device,
    ) -> BaseModel:
        """Return the base, loading it unless it is the cached one."""
        what = (model_id, source, revision, dtype, placements, device)
        if self._base is None or what != self._what:
            # Free the old base first: two may not fit in memory.
            self._base = None
            self._base, self._what = load_base_model(*what), what
        return self._base


def check_layers(placements: Iterable[Placement], n_layers: int) -> None:
    """Check that the base has every adapted layer; ModelError otherwise."""
    if (last := max(placement.layers[-1] for placement in placements)) >= n_layers:
        raise ModelError(
            f"the adapter sits at layer {last}, but the base has layers 0 to {n_layers - 1}"
        )


__all__ = [
    "BaseModel",
    "LayerInputs",
    "freeze_base",
    "load_base_model",
]
