"""Places of an adapter in its base: which linear modules, how deep, with how many parameters.

A placement's name may say all of this plainly (`q_proj,v_proj of layer 20 of 30`); else its sites
are of no known kind, and a law takes the placement as exchangeable with the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pmlray.errors import DataError
from pmlray.types import DesignPoint

Kind = Literal["attention", "mlp_in", "mlp_out", "mlp_block", "other"]
# Kinds of known modules; "mlp_block" is a pair of factors beside a whole MLP (the paper's), "other"
# what is not known.
KINDS: tuple[Kind, ...] = ("attention", "mlp_in", "mlp_out", "mlp_block")

_ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "q", "k", "v", "o"),
    *("query_key_value", "c_attn", "attention", "attn"),
)
_MLP_IN = (
    *("gate_proj", "up_proj", "gate_up_proj", "gate", "up", "fc1", "c_fc", "fc_in"),
    "dense_h_to_4h",
)
_MLP_OUT = ("down_proj", "down", "fc2", "fc_out", "dense_4h_to_h")
_MODULES: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(_ATTENTION, ("attention",)),
    **dict.fromkeys(_MLP_IN, ("mlp_in",)),
    **dict.fromkeys(_MLP_OUT, ("mlp_out",)),
    **dict.fromkeys(("mlp_block", "mlp"), ("mlp_block",)),
    "all_linear": ("attention",) * 4 + ("mlp_in", "mlp_in", "mlp_out"),
}
# Depths that stand for all layers of a base, whose number a name does not say.
_EVERY_DEPTH = (0.0, 0.25, 0.5, 0.75, 1.0)
_EVERY_LAYER = re.compile(r"\b(?:all|every)[ _-]?layers?\b")
_SOME_LAYERS = re.compile(r"(?:@|\blayers? ?)(\d{1,4}(?:[ ,+]+\d{1,4})*)(?: ?(?:/|of) ?(\d{1,4}))?")
_ALL_LINEAR = re.compile(r"\ball[ _-]linear\b")
# Of a module's full name, what its last part says again.
_PARENTS = re.compile(r"\b(?:mlp|self_attn|attn|self_attention|attention)\.(?=[a-z])")
_FILLERS = {"and", "of", "in", "at"}


@dataclass(frozen=True, slots=True)
class Site:
    """Adapted modules of one kind at one depth.

    `depth`: 0 at the base's first layer and 1 at its last; None when it is not known.
    `params_per_rank`: trainable parameters of an adapter of rank 1 there.
    """

    kind: Kind
    depth: float | None
    params_per_rank: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Set of sites that an adapter of one rank is put at, under a name.

    Raises:
        DataError: no sites, a depth outside 0 to 1, or parameters that are not above 0.

    Example:
        >>> down = Site("mlp_out", depth=20 / 29, params_per_rank=2112)
        >>> Placement("down_proj of layer 20", (down,)).params_per_rank
        2112
    """

    name: str
    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        if not self.sites:
            raise DataError(f"the placement {self.name!r} has no sites: name at least one module")
        for site in self.sites:
            if not site.params_per_rank > 0 or not 0.0 <= (site.depth or 0.0) <= 1.0:
                raise DataError(
                    f"the placement {self.name!r} has a site with {site.params_per_rank} parameters"
                    f" a rank at the depth {site.depth}: expected more than 0, and 0 to 1"
                )

    @property
    def params_per_rank(self) -> float:
        """Trainable parameters of an adapter of rank 1."""
        return sum(site.params_per_rank for site in self.sites)

    @property
    def is_one_mlp_block(self) -> bool:
        """True for the paper's placement: beside the MLP of one layer."""
        return len(self.sites) == 1 and self.sites[0].kind == "mlp_block"


def module_kind(module: str) -> Kind:
    """Return the kind of a module by its name within a layer, such as `self_attn.q_proj`."""
    kinds = _MODULES.get(module.rpartition(".")[2].lower(), ())
    return kinds[0] if len(kinds) == 1 else "other"


def placement_at(name: str, modules: Iterable[tuple[int, str, float]], n_layers: int) -> Placement:
    """Return the placement of an adapter at known modules of a base.

    modules: layer from 0, name within the layer, and trainable parameters of a rank there, each;
    n_layers: of the base. Modules of one kind in one layer make one site.
    """
    params: dict[tuple[Kind, float], float] = {}
    for layer, module, params_per_rank in modules:
        at = (module_kind(module), layer / max(n_layers - 1, 1))
        params[at] = params.get(at, 0.0) + params_per_rank
    return Placement(name, tuple(Site(kind, depth, n) for (kind, depth), n in params.items()))


def named_placement(name: str, params_per_rank: float) -> Placement:
    """Return the placement of a name, with the kinds and depths that the name says plainly.

    Only a name whose every word is understood says anything: modules (`q_proj`, `mlp_block`,
    `all-linear`), `layer 20 of 30`, `@20/30`, `all layers`. The depth of `layer 20` alone is not
    known. The modules of a name share its parameters evenly.
    """
    text = name.lower().strip()
    every = _EVERY_LAYER.search(text) is not None
    some = _SOME_LAYERS.search(text)
    depths: tuple[float | None, ...] = (None,)
    if every:
        depths = _EVERY_DEPTH
    elif some and some.group(2) and int(some.group(2)) > 1:
        last = int(some.group(2)) - 1
        depths = tuple(int(layer) / last for layer in re.findall(r"\d+", some.group(1)))
    text = _PARENTS.sub("", text)
    rest = _ALL_LINEAR.sub(" all_linear ", _SOME_LAYERS.sub(" ", _EVERY_LAYER.sub(" ", text)))
    words = [word for word in re.split(r"[^a-z0-9_]+", rest) if word and word not in _FILLERS]
    beyond = any(depth is not None and depth > 1.0 for depth in depths)
    if not words or beyond or any(word not in _MODULES for word in words):
        return Placement(name, (Site("other", None, params_per_rank),))
    kinds = [kind for word in words for kind in _MODULES[word]]
    each = params_per_rank / (len(kinds) * len(depths))
    return Placement(
        name,
        tuple(
            Site(kind, depth, each * kinds.count(kind))
            for kind in dict.fromkeys(kinds)
            for depth in depths
        ),
    )


def in_order(
    of_points: Sequence[Placement], beside: Sequence[Placement] = ()
) -> tuple[Placement, ...]:
    """Return the placements of some points and others beside them, each once, the reference first.

    The reference is the paper's placement, beside the MLP of one layer, where it is among them,
    else the one with the most points; the others keep the order of their first points. DataError
    where two placements share a name.
    """
    counts: dict[Placement, int] = {}
    for placement in of_points:
        counts[placement] = counts.get(placement, 0) + 1
    others = [placement for placement in dict.fromkeys(beside) if placement not in counts]
    names = [placement.name for placement in (*counts, *others)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"two placements have the name {twice[0]!r}, with other modules, layers or parameters:"
            " give each its own name"
        )
    if not counts:
        return ()
    reference = max(counts, key=lambda p: (p.is_one_mlp_block, counts[p]))
    return (reference, *(p for p in counts if p != reference), *others)


@dataclass(frozen=True, slots=True)
class PlacedPoint:
    """Design point whose rank is that of an adapter at a placement."""

    point: DesignPoint
    placement: Placement
