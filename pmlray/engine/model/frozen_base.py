"""A frozen causal language model and the places of adapters in it: what both paths share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pmlray.config.adapters.placement import Placement, Site
from pmlray.config.bases.geometry import LLAMAS_LAYERS
from pmlray.engine.model.cpu_offload import HostedWeights, nothing_hosted
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.model.sites import Delta, SiteDeltas

if TYPE_CHECKING:
    from pmlray.engine.model.batches import MicroBatch

# The adapters' outputs on a micro-batch, a part of one whose positions are those of the slice.
Adapters = Callable[["MicroBatch", slice], Delta]


class LayerInputs(NamedTuple):
    """Outputs of the prefix, (B, T, D): what is cached of a text, and the kept sites' inputs.

    The latter stand side by side; without a kept site there are no columns.
    """

    hidden_BTD: Tensor
    adapter_in_BTX: Tensor


@dataclass(frozen=True)
class BaseModel(ABC):
    """A frozen causal language model with its tokenizer and the places of its adapters.

    placements: those that adapters may have, each once. hosted: the weights of the prefix that are
    kept in host memory. deltas: what the sites above the prefix add to their outputs at the moment.
    site_shapes: input and output width of every site, where the base is to be trained. layers_path:
    name of the model's list of decoder layers.
    """

    # Typed as Any: a transformers model is built at run time, so the type checker cannot see it.
    model: Any
    tokenizer: Any
    placements: tuple[Placement, ...]
    hosted: HostedWeights = field(default_factory=nothing_hosted)
    deltas: SiteDeltas = field(default_factory=SiteDeltas)
    site_shapes: Mapping[Site, tuple[int, int]] = field(default_factory=dict[Site, tuple[int, int]])
    layers_path: str = LLAMAS_LAYERS

    @abstractmethod
    def run_prefix(self, ids_BT: Tensor) -> LayerInputs:
        """Compute what is cached of right-padded token ids, (B, T)."""

    @abstractmethod
    def losses(self, batch: MicroBatch, adapters: Adapters) -> TokenLosses:
        """Return the losses of a micro-batch's N supervised tokens under its rows' adapters."""

    @property
    @abstractmethod
    def kept_sites(self) -> tuple[Site, ...]:
        """Sites of the prefix's last layer, whose outputs are added to its own; see `kept_sites`
        of `placement`."""

    @property
    @abstractmethod
    def prefix(self) -> tuple[Any, ...]:
        """The modules whose output is cached."""

    @property
    @abstractmethod
    def suffix_layers(self) -> Any:
        """The decoder layers that run in a step."""

    @property
    def layers(self) -> Any:
        """The decoder layers."""
        return self.model.get_submodule(self.layers_path)

    @property
    def device(self) -> torch.device:
        """Device of the head's weights, on which steps run."""
        return self.head_weight.device

    @property
    def can_be_captured(self) -> bool:
        """Whether a step's kernels can be recorded as a graph."""
        return False

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
        return self.model.get_output_embeddings().weight

    def module_at(self, site: Site) -> nn.Module:
        """Return the module at a site."""
        return self.layers[site.layer].get_submodule(site.module)

    @contextmanager
    def with_adapter(self, delta: Delta) -> Generator[None]:
        """Add `delta(site, its input)` at every site in ordinary forward and generate calls.

        At a kept site it is added to the output of the site's layer, as in training.
        """
        with ExitStack() as stack:
            stack.enter_context(self.hosted.held())
            stack.enter_context(self.deltas.of(delta))
            for site in self.kept_sites:
                hooks = _KeptSite(site, delta)
                at = self.module_at(site).register_forward_pre_hook(hooks.keep)
                stack.callback(at.remove)
                stack.callback(self.layers[site.layer].register_forward_hook(hooks.add).remove)
            yield


class _KeptSite:
    """Hooks that add an adapter's output to that of a kept site's layer."""

    def __init__(self, site: Site, delta: Delta) -> None:
        self._site, self._delta = site, delta
        self._inputs: list[Tensor] = []

    def keep(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs.append(args[0])

    def add(self, _layer: nn.Module, _args: Any, output: Tensor) -> Tensor:
        added = self._delta(self._site, self._inputs.pop())
        return output if added is None else output + added.to(output.dtype)
