"""The `adapter` part of a spec: where LoRA's factors sit, in PEFT's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pmlray.config.adapters.placement import DOWN_PROJ, MLP_BLOCK, Placement
from pmlray.config.spec_base import Count, Part, PositiveInt
from pmlray.errors import SpecError

ALL_LINEAR, PAPERS_BLOCK = "all-linear", "mlp_block"
# A decimal number above 0, and then an r.
_MULTIPLE_OF_R = r"^(\d*[1-9]\d*(\.\d+)?|\d+\.\d*[1-9]\d*)r$"


class Probe(Part):
    """Place of an adapter at one layer: `mlp` is parallel to the MLP of the decoder layer and added
    to that layer's output (the paper's); `down_proj` adapts that projection (PEFT's)."""

    placement: Literal["mlp", "down_proj"] = "mlp"
    layer: Count

    def to_placement(self) -> Placement:
        """Return the adapter's one site."""
        return Placement((self.layer,), (MLP_BLOCK if self.placement == "mlp" else DOWN_PROJ,))

    def resolve(
        self, n_layers: int, modules: Mapping[str, tuple[int, int]], key: str = "probe"
    ) -> Placement:
        """Return the site in a base; SpecError where it lacks it. See `Adapter.resolve`."""
        if self.layer >= n_layers:
            raise SpecError(
                f"{key}.layer is {self.layer}, but the base has layers 0 to {n_layers - 1}"
            )
        if self.placement == "down_proj" and DOWN_PROJ not in modules:
            raise SpecError(
                f"{key}.placement: the base's layers have no linear {DOWN_PROJ}; they have"
                f" {', '.join(modules)}, which adapter.target_modules takes"
            )
        return self.to_placement()

    def describe(self) -> str:
        """Return where the adapter sits, in words."""
        return f"{self.placement} of layer {self.layer}"


class LayerRange(Part):
    """The decoder layers `from` to `to`, both among them."""

    model_config = ConfigDict(serialize_by_alias=True)

    first: Count = Field(alias="from")
    last: Count = Field(alias="to")

    @model_validator(mode="after")
    def _ascends(self) -> LayerRange:
        if self.first > self.last:
            raise ValueError(f"layers goes from {self.first} down to {self.last}")
        return self


class Adapter(Part):
    """Sites and scale of a LoRA adapter, as in PEFT's LoraConfig.

    `target_modules`: names of linear modules (`q_proj`, or `self_attn.q_proj` where a name alone is
    not enough), `all-linear` for every linear module of the layers, or `mlp_block` for the paper's,
    parallel to the MLP. `layers`: `all`, a list, or `{from: F, to: T}`. `alpha`: LoRA's alpha as a
    number, or as a multiple of the rank such as `2r`; by default the rank itself, so that the
    factors' product is added as it is. `use_rslora`: alpha is divided by the root of the rank
    (arXiv 2312.03732). `from_adapter`: in place of all these, the folder of an adapter that PEFT or
    pmlray saved, relative to the search file: every run begins with its weights, at its sites and
    with its scale at every rank. A larger rank adds columns of which A is drawn and B is 0.
    """

    # Of a key that takes values of several types the description is the complaint about others.
    target_modules: str | tuple[str, ...] | None = Field(
        default=None,
        description="a name of linear modules, a list of such names, all-linear, or mlp_block",
    )
    layers: Literal["all"] | tuple[Count, ...] | LayerRange = Field(
        default="all",
        description="all, a list of layers from 0 that ascends, or {from: FIRST, to: LAST}",
    )
    alpha: Annotated[float, Field(gt=0)] | Annotated[str, Field(pattern=_MULTIPLE_OF_R)] = Field(
        default="1r", description="a number above 0, or a multiple of the rank such as 2r"
    )
    use_rslora: bool = False
    from_adapter: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _says_where_once(self) -> Adapter:
        if self.from_adapter is None and self.target_modules is None:
            raise ValueError(
                "adapter.target_modules is needed, or adapter.from_adapter, the folder of an"
                " adapter to begin with"
            )
        beside = sorted(self.model_fields_set - {"from_adapter"})
        if self.from_adapter is not None and beside:
            raise ValueError(
                f"adapter.from_adapter gives the sites, alpha and use_rslora of the adapter in"
                f" {self.from_adapter}: leave out adapter.{', adapter.'.join(beside)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what `from_adapter` stands in for, which it would otherwise contradict."""
        fields: dict[str, Any] = handler(self)
        if self.from_adapter is not None:
            return {"from_adapter": self.from_adapter}
        return {name: value for name, value in fields.items() if name != "from_adapter"}

    @property
    def named_modules(self) -> tuple[str, ...]:
        """Names within a decoder layer, as given; none for all linear modules."""
        wanted = self._wanted
        short = {ALL_LINEAR: (), PAPERS_BLOCK: (MLP_BLOCK,)}
        return short.get(wanted[0], wanted) if len(wanted) == 1 else wanted

    def describe(self) -> str:
        """Return where the adapter sits, in words."""
        if self.from_adapter is not None:
            return f"the sites of the adapter in {self.from_adapter}"
        named = ", ".join(self._wanted)
        scale = "" if self.alpha == "1r" else f", alpha {_plain(self.alpha)}"
        return f"{named} of {self._describe_layers()}{scale}{', rsLoRA' * self.use_rslora}"

    def _describe_layers(self) -> str:
        if self.layers == "all":
            return "all layers"
        if isinstance(self.layers, LayerRange):
            return f"layers {self.layers.first} to {self.layers.last}"
        return f"layer{'s' * (len(self.layers) != 1)} {', '.join(map(str, self.layers))}"

    def resolve(
        self, n_layers: int, modules: Mapping[str, tuple[int, int]], key: str = "adapter"
    ) -> Placement:
        """Return the sites in a base; SpecError where it lacks a module or a layer.

        Args:
            n_layers: number of its decoder layers.
            modules: input and output width of each linear module of a layer, by its name there,
                in the layer's order.
            key: that of this part in its file, with which errors begin.
        """
        by_rank = isinstance(self.alpha, str)
        return Placement(
            self._layers(n_layers, key),
            self._modules(modules, key),
            None if by_rank else float(self.alpha),
            float(str(self.alpha).removesuffix("r")) if by_rank else 1.0,
            self.use_rslora,
        )

    def _layers(self, n_layers: int, key: str) -> tuple[int, ...]:
        if self.layers == "all":
            return tuple(range(n_layers))
        if isinstance(self.layers, LayerRange):
            chosen = tuple(range(self.layers.first, self.layers.last + 1))
        else:
            chosen = tuple(self.layers)
        if not chosen or list(chosen) != sorted(set(chosen)):
            raise SpecError(f"{key}.layers must ascend without repeats, got {list(chosen)}")
        if chosen[-1] >= n_layers:
            raise SpecError(
                f"{key}.layers names layer {chosen[-1]}, but the base has layers 0 to"
                f" {n_layers - 1}"
            )
        return chosen

    @property
    def _wanted(self) -> tuple[str, ...]:
        given = self.target_modules
        return (given,) if isinstance(given, str) else given or ()

    def _modules(self, modules: Mapping[str, tuple[int, int]], key: str) -> tuple[str, ...]:
        wanted = self._wanted
        if wanted == (PAPERS_BLOCK,):
            return (MLP_BLOCK,)
        if wanted == (ALL_LINEAR,):
            return tuple(modules)
        named = {want: [m for m in modules if f".{m}".endswith(f".{want}")] for want in wanted}
        lacking = [want for want, found in named.items() if not found]
        if lacking or not wanted:
            raise SpecError(
                f"{key}.target_modules: the base's layers have no"
                f" {', '.join(lacking) or 'module that is not named'}; they have"
                f" {', '.join(modules)} ({ALL_LINEAR} for all of them, {PAPERS_BLOCK} for the"
                " paper's block)"
            )
        chosen = {module for found in named.values() for module in found}
        return tuple(module for module in modules if module in chosen)


class NamedAdapter(Adapter):
    """One of several placements of a search, as `Adapter`; `lora_rank`: its own ranks in place of
    `space.lora_rank`, which ascend. None begins with an adapter."""

    lora_rank: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _begins_fresh(self) -> NamedAdapter:
        if self.from_adapter is not None:
            raise ValueError(
                "from_adapter is a key of adapter, for a search with one place of its adapters"
            )
        return self


# Where the adapters of one placement sit.
AdapterPlace = Probe | Adapter


def one_place(probe: Probe | None, adapter: Adapter | None, of: str) -> AdapterPlace:
    """Return the one of the two that a spec has; ValueError for both or none. of: the spec."""
    if probe is None and adapter is not None:
        return adapter
    if probe is not None and adapter is None:
        return probe
    both = "both" if probe is not None else "neither"
    raise ValueError(f"{of} needs exactly one of adapter and probe, and has {both}")


def _plain(alpha: float | str) -> str:
    return alpha if isinstance(alpha, str) else f"{alpha:g}"
