"""Sites of adapters in a frozen base: modules whose output an adapter adds to."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pmlray.config.adapters.placement import MLP_BLOCK, Site
from pmlray.config.bases.own_model import linear_shape
from pmlray.errors import ModelError

# The adapters' output at a site, for the site's input; None where it is zero everywhere.
Delta = Callable[[Site, Tensor], Tensor | None]


class SiteDeltas:
    """What the adapted sites of one base add to their outputs at the moment; None: nothing."""

    def __init__(self) -> None:
        self.current: Delta | None = None

    def at(self, site: Site, x: Tensor) -> Tensor | None:
        """Return what is added at a site, for its input; None for nothing."""
        return None if self.current is None else self.current(site, x)

    @contextmanager
    def of(self, delta: Delta) -> Generator[None]:
        """Add `delta` at every site within the context."""
        before, self.current = self.current, delta
        try:
            yield
        finally:
            self.current = before


class AdaptedSite(nn.Module):
    """Replacement of a frozen module, whose output the active adapters add to.

    It is added, in their precision, and rounded, where PEFT does it.
    """

    def __init__(self, module: nn.Module, site: Site, deltas: SiteDeltas) -> None:
        super().__init__()
        self.module, self.site = module, site
        self._deltas = deltas

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output with that of the adapters."""
        output = self.module(x)
        added = self._deltas.at(self.site, x)
        return output if added is None else (output + added).to(output.dtype)


def adapt_sites(layers: Any, sites: Iterable[Site], deltas: SiteDeltas) -> None:
    """Replace the modules at the sites of decoder layers, a module's parts before itself."""
    for site in sorted(sites, key=lambda site: -site.module.count(".")):
        parent, _, name = site.module.rpartition(".")
        holder = layers[site.layer].get_submodule(parent)
        setattr(holder, name, AdaptedSite(getattr(holder, name), site, deltas))


def adapt_blocks(layers: Any, sites: Iterable[Site], deltas: SiteDeltas) -> None:
    """Add the adapters' outputs to those of the sites' layers; their inputs are the MLPs'.

    For families in which the MLP's own output is scaled, normed or added to something else first.
    """
    for site in sites:
        _Block(site, deltas).watch(layers[site.layer])


class _Block:
    """A site parallel to the whole MLP of one layer."""

    def __init__(self, site: Site, deltas: SiteDeltas) -> None:
        self._site, self._deltas = site, deltas
        self._input: Tensor | None = None

    def watch(self, layer: Any) -> None:
        layer.get_submodule(self._site.module).register_forward_pre_hook(self._keep)
        layer.register_forward_hook(self._add)

    def _keep(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._input = args[0]

    def _add(self, _layer: nn.Module, _args: Any, output: Any) -> Any:
        x, self._input = self._input, None
        if x is None or (delta := self._deltas.at(self._site, x)) is None:
            return output
        hidden = output if isinstance(output, Tensor) else output[0]
        added = (hidden + delta.view(hidden.shape)).to(hidden.dtype)
        return added if isinstance(output, Tensor) else (added, *output[1:])


def site_shapes(layers: Any, sites: Iterable[Site], hidden: int) -> Mapping[Site, tuple[int, int]]:
    """Return the input and output width of every site, none of which is adapted yet.

    hidden: width of the layers' outputs. ModelError where the base lacks a module.
    """
    shapes: dict[Site, tuple[int, int]] = {}
    for site in sites:
        if site.module == MLP_BLOCK:
            shapes[site] = hidden, hidden
            continue
        try:
            module = layers[site.layer].get_submodule(site.module)
        except AttributeError as error:
            raise ModelError(
                f"the adapter sits at {site.module} of layer {site.layer}, which the base lacks"
            ) from error
        shapes[site] = linear_shape(module)
    return shapes
