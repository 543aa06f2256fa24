"""Adapter that runs begin with: read and checked in full, without torch and PEFT."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pmlray.config.adapters.peft_config import (
    BLOCK_CONFIG_FILE,
    CONFIG_FILE,
    INERT_KEYS,
    OFF_KEYS,
    WEIGHTS_FILE,
    is_target,
)
from pmlray.config.adapters.placement import MLP_BLOCK, Placement, Site
from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource, loadable_name, resolve_model
from pmlray.config.bases.safetensors_header import Tensor, listed, not_finite, read_header
from pmlray.config.stored_files import Card, read_stored
from pmlray.errors import ModelError

CARD_JSON, TOKENIZER_FILE = "card.json", "tokenizer.json"
# All files of an adapter's folder that are read.
START_FILES = (CONFIG_FILE, BLOCK_CONFIG_FILE, WEIGHTS_FILE, CARD_JSON, TOKENIZER_FILE)
# Keys that are read here. `fan_in_fan_out` is how the base keeps its weights, not the adapter.
READ_KEYS = {
    "fan_in_fan_out", "layers_to_transform", "lora_alpha", "r", "target_modules", "use_rslora",
}  # fmt: skip
FIXED_KEYS: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    # The others change the weights of the base.
    "init_lora_weights": (True, False, "gaussian"),
}
BLOCK_KEYS = {"base_model", "lora_rank", "placement"}
# Types of weights that float32 holds as they are.
DTYPES = ("F32", "BF16", "F16")
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    re.error,
)  # fmt: skip


@dataclass(frozen=True)
class StartAdapter:
    """Adapter whose weights runs begin with.

    Attributes:
        placement: its sites, with its scale at every rank: alpha grows with the rank, so that the
            columns it has go on as they were in an adapter of more.
        lora_rank: its rank.
        names: of A and B of each site in its weights.
        transposed: whether these are (r, X) and (D, r), as PEFT has them, not (X, r) and (r, D).
        weights: content of its file of weights, safetensors.
    """

    placement: Placement
    lora_rank: int
    names: Mapping[Site, tuple[str, str]]
    transposed: bool
    weights: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of its file of weights, as `sha256sum` prints it."""
        return hashlib.sha256(self.weights).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what a run's hash and its provenance tell of it, beside the placement."""
        return {"sha256": self.sha256, "lora_rank": self.lora_rank}

    def describe(self) -> str:
        """Return where it sits, in words."""
        modules = ", ".join(module.rpartition(".")[2] for module in self.placement.modules)
        layers = ", ".join(map(str, self.placement.layers))
        scale = self.placement.alpha_per_rank
        alpha = "" if scale == 1 else f", alpha {scale:g}r"
        return (
            f"{modules} of layer{'s' * (len(self.placement.layers) != 1)} {layers}{alpha}, from an"
            f" adapter of rank {self.lora_rank} ({self.sha256[:8]})"
        )


def read_start(folder: Path, model: Model, source: ModelSource) -> StartAdapter:
    """Read an adapter of PEFT's layout, or of pmlray's own at the paper's block, and check it.

    Args:
        folder: holds the config and `adapter_model.safetensors`.
        model: base of the runs that begin with it.
        source: where that base is, and its sizes.

    Raises:
        ModelError: the folder holds no adapter, or a damaged one; it is of another base; or it has
            anything that is not applied as plain LoRA: the message names it.
    """
    file = folder / WEIGHTS_FILE
    try:
        config_file = next(
            (f for name in (BLOCK_CONFIG_FILE, CONFIG_FILE) if (f := folder / name).is_file()), None
        )
        if config_file is None or not file.is_file():
            raise _refused(
                folder,
                f"it needs {WEIGHTS_FILE} and PEFT's {CONFIG_FILE}, or pmlray's"
                f" {BLOCK_CONFIG_FILE}; give the folder of an adapter that either saved",
            )
        config: Any = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"{config_file.name} is no JSON object")
        known: dict[str, Any] = config
        if config_file.name == BLOCK_CONFIG_FILE:
            found = _read_block(folder, known, source)
            named, revision = known["base_model"], None
        else:
            found = _read_lora(folder, known, source)
            named, revision = known.get("base_model_name_or_path"), known.get("revision")
        _check_base(folder, named, revision, model, source)
        _check_tokenizer(folder, source)
    except DAMAGE as error:
        raise ModelError(f"{folder}: the adapter cannot be read ({error!r})") from error
    return found


def _read_lora(folder: Path, config: Mapping[str, Any], source: ModelSource) -> StartAdapter:
    more = sorted(
        f"{key}: {json.dumps(value)}"
        for key, value in config.items()
        if not (
            key in INERT_KEYS | READ_KEYS
            or (key in OFF_KEYS and not value)
            or value in FIXED_KEYS.get(key, ())
            # Off, in versions of PEFT that know it.
            or (key not in FIXED_KEYS and value is None)
        )
    )
    if more or config.get("peft_type") != "LORA":
        raise _refused(
            folder,
            f"runs begin with plain LoRA alone, not with {', '.join(more) or 'no peft_type'}",
        )
    rank: Any = config["r"]
    alpha: Any = config["lora_alpha"]
    rslora: Any = config.get("use_rslora", False)
    numbers = type(rank) is int and rank >= 1 and isinstance(alpha, int | float)
    if not numbers or isinstance(alpha, bool) or not isinstance(rslora, bool):
        raise TypeError(f"r {rank!r}, lora_alpha {alpha!r}, use_rslora {rslora!r}")
    own = Placement((0,), (), float(alpha), use_rslora=rslora)
    geometry = source.geometry
    path, modules = geometry.layers_path, geometry.modules
    every = [Site(layer, module) for layer in range(geometry.n_layers) for module in modules]
    inner = {site: f"{path}.{site.layer}.{site.module}" for site in every}
    sites = [site for site in every if is_target(config, inner[site])]
    targets: Any = config["target_modules"]
    listed_targets: list[Any] = [] if isinstance(targets, str) else list(targets)
    for target in listed_targets:
        if not any(f".{inner[site]}".endswith(f".{target}") for site in sites):
            raise _refused(
                folder,
                f"its target_modules name {target!r}, which is no linear module of its layers; they"
                f" have {', '.join(modules)}",
            )
    placement = _placed(folder, sites, source, own.scale(rank))
    names, shapes = dict[Site, tuple[str, str]](), dict[str, tuple[int, int]]()
    for site in placement.sites:
        at, (width, out) = f"base_model.model.{inner[site]}", modules[site.module]
        names[site] = a, b = f"{at}.lora_A.weight", f"{at}.lora_B.weight"
        shapes |= {a: (rank, width), b: (out, rank)}
    return StartAdapter(placement, rank, names, True, _read_weights(folder, shapes))


def _read_block(folder: Path, config: Mapping[str, Any], source: ModelSource) -> StartAdapter:
    one = "layer" in config
    layers: list[Any] = [config["layer"]] if one else list(config["layers"])
    strange = (set(config) - {"scale"}) ^ (BLOCK_KEYS | {"layer" if one else "layers"})
    rank, scale = config["lora_rank"], float(config.get("scale", 1))
    numbers = all(type(n) is int for n in [*layers, rank])
    if strange or not numbers or rank < 1 or config["placement"] != MLP_BLOCK:
        raise ValueError(f"{BLOCK_CONFIG_FILE} is not as pmlray writes it")
    if (why := source.geometry.refusal(MLP_BLOCK)) is not None:
        raise _refused(folder, why)
    sites = [Site(layer, MLP_BLOCK) for layer in layers]
    placement = _placed(folder, sites, source, scale)
    pairs = {s: ("A", "B") if one else (f"{s.layer}.A", f"{s.layer}.B") for s in sites}
    hidden = source.geometry.hidden
    shapes = {a: (hidden, rank) for a, _ in pairs.values()}
    shapes |= {b: (rank, hidden) for _, b in pairs.values()}
    return StartAdapter(placement, rank, pairs, False, _read_weights(folder, shapes))


def _placed(folder: Path, sites: list[Site], source: ModelSource, scale: float) -> Placement:
    """Return the placement of these sites; ModelError where they are not the same modules in each
    of some layers of the base."""
    layers = tuple(sorted({site.layer for site in sites}))
    found = {site.module for site in sites}
    modules = tuple(module for module in source.geometry.adaptable if module in found)
    placement = Placement(layers, modules, alpha_per_rank=scale)
    if not sites or layers[0] < 0 or layers[-1] >= source.geometry.n_layers:
        raise _refused(
            folder,
            f"not all of it sits in the base's layers 0 to {source.geometry.n_layers - 1}",
        )
    if set(placement.sites) != set(sites):
        raise _refused(
            folder,
            "its layers do not all have the same adapted modules, which pmlray's adapters have:"
            f" {listed(f'{s.module} of layer {s.layer}' for s in sites)}",
        )
    if not 0 < scale < math.inf:
        raise _refused(folder, f"its alpha gives the scale {scale:g}, which is no number above 0")
    return placement


def _read_weights(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the content of the file of weights, which holds these tensors and no others."""
    file = folder / WEIGHTS_FILE
    found = read_header(file)
    if absent := sorted(set(wanted) - set(found)):
        raise _refused(folder, f"its weights lack {listed(absent)}")
    if beside := sorted(set(found) - set(wanted)):
        raise _refused(
            folder, f"its weights have what its config does not place in the base: {listed(beside)}"
        )
    for name, shape in wanted.items():
        if found[name] not in [Tensor(dtype, shape) for dtype in DTYPES]:
            raise _refused(
                folder,
                f"{name} is {found[name].dtype} {list(found[name].shape)}; the base and the config"
                f" ask for {list(shape)}, in {', '.join(DTYPES)}",
            )
    weights = file.read_bytes()
    if broken := not_finite(weights):
        raise _refused(folder, f"not all numbers are finite in {listed(broken)}")
    return weights


def _check_base(
    folder: Path, named: object, revision: object, model: Model, source: ModelSource
) -> None:
    """Check that an adapter names the base of the runs; ModelError otherwise."""
    known = None
    if (folder / CARD_JSON).is_file():
        known = read_stored(Card, folder / CARD_JSON).base_model.identity
    own = {model.id, loadable_name(model.id)}
    if known is not None and known == source.identity:
        return
    if known is None and isinstance(named, str):
        pinned = source.revision
        if named in own and (pinned is None or revision in (None, pinned, model.revision)):
            return
        # A folder by another path; its weights tell.
        if Path(named).is_dir() and source.folder is not None:
            there, here = resolve_model(named, None), resolve_model(str(source.folder), None)
            if there.identity == here.identity:
                return
    said = known or (f"{named} at {revision}" if revision else named) or "no base model"
    raise _refused(
        folder,
        f"it names {said} as its base, and the runs' is {model.id} ({source.identity}). If these"
        f" are the same weights, write base_model_name_or_path: {loadable_name(model.id)!r}"
        f" (revision: {source.revision!r}) into its {CONFIG_FILE}",
    )


def _check_tokenizer(folder: Path, source: ModelSource) -> None:
    """Check that a tokenizer beside the weights has the base's tokens, which texts are made of."""
    if source.folder is None or not (folder / TOKENIZER_FILE).is_file():
        return
    own, bases = (
        {*read_tokenizer(f / TOKENIZER_FILE).get_vocab().items()} for f in (folder, source.folder)
    )
    if differing := sorted(own ^ bases):
        shown = listed(repr(token) for token, _ in differing)
        raise _refused(
            folder, f"its {TOKENIZER_FILE} and the base's differ in {shown}: runs use the base's"
        )


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(f"{folder}: runs cannot begin with this adapter: {why}")
