"""Adapters read from their folders: pmlray's own, and whatever PEFT loads.

An adapter is read here only where every key of its config and every tensor of its weights is known.
PEFT itself runs all others, so that none is run as something that it is not.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pmlray.config.adapters.peft_config import INERT_KEYS, OFF_KEYS
from pmlray.config.adapters.placement import DOWN_PROJ, MLP_BLOCK, Placement, Site
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource
from pmlray.engine.adapters.foreign_adapter import ForeignAdapter, read_foreign
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.adapters.peft_io import MLP_CONFIG_FILE, WEIGHTS_FILE
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.errors import ModelError

PEFT_CONFIG_FILE = "adapter_config.json"
PICKLED_FILE = "adapter_model.bin"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
MLP_CONFIG_KEYS = {"base_model", "lora_rank", "placement"}
# Errors of reading a damaged or foreign adapter folder.
DAMAGE = (
    SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip
# Keys that this reader follows, and those that it does not: it needs them to be off.
READ_KEYS = {"lora_alpha", "layers_to_transform", "r", "target_modules", "use_rslora"}
FIXED_KEYS: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    "init_lora_weights": (True, False),
}


@dataclass(frozen=True, eq=False)
class SiteAdapter:
    """An adapter that pmlray attaches itself: A (X, r) and B (r, D) by site, in fp32.

    Attributes:
        base_model: the base that the folder names.
        placement: sites of the adapter, and its scale.
        weights: A and B by site; X and D are the site's widths.
        revision: revision of the base, where the folder names one.
    """

    base_model: str
    placement: Placement
    weights: AdapterWeights
    revision: str | None = None

    @property
    def lora_rank(self) -> int:
        """Rank r of the adapter."""
        return next(iter(self.weights.values()))[0].shape[1]

    @property
    def title(self) -> str:
        """What the adapter is, in a few words."""
        return f"an adapter of rank {self.lora_rank}"

    def load_base(self, model: Model, source: ModelSource, device: torch.device) -> BaseModel:
        """Load the base that this adapter is attached to; ModelError if it does not fit."""
        base = load_base_model(
            model.id, source, model.revision, model.base_dtype, (self.placement,), device
        )
        self.check_fits(base)
        return base

    def check_fits(self, base: BaseModel) -> None:
        """Check that the widths are those of the base at the adapter's sites; else ModelError."""
        for site, wanted in base.site_shapes.items():
            a, b = self.weights[site]
            found = (a.shape[0], b.shape[1])
            if found != wanted:
                raise ModelError(
                    f"the adapter maps {found[0]} to {found[1]} values, the base model's"
                    f" {site.module} {wanted[0]} to {wanted[1]}: it belongs to another model,"
                    f" {self.base_model} by its own account"
                )

    @contextmanager
    def attached(self, base: BaseModel) -> Generator[BaseModel]:
        """Add the adapter's output in forward and generate calls of the base.

        At linear modules it is added, and rounded, where PEFT adds it.
        """
        scale = self.placement.scale(self.lora_rank)
        factors = {
            site: (a.to(base.device), scale * b.to(base.device))
            for site, (a, b) in self.weights.items()
        }

        def delta(site: Site, x_RTX: Tensor) -> Tensor:
            a, b = factors[site]
            return x_RTX.to(a.dtype) @ a @ b

        kept = self.placement.kept_site
        if kept is None or kept not in base.kept_sites or kept.module == MLP_BLOCK:
            with base.with_adapter(delta):
                yield base
            return

        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return (output + delta(kept, args[0])).to(output.dtype)

        with ExitStack() as stack:
            stack.enter_context(base.hosted.held())
            stack.callback(base.module_at(kept).register_forward_hook(add).remove)
            yield base


StoredAdapter = SiteAdapter | ForeignAdapter


def read_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter folder of pmlray's `mlp` format, or of PEFT's.

    Args:
        folder: holds `pmlray_adapter.json` or `adapter_config.json`, and the weights.

    Returns:
        The adapter. One of PEFT's formats that is more than plain LoRA at one layer's `down_proj`
        is loaded by PEFT when it is attached.

    Raises:
        ModelError: the folder holds no adapter, a damaged one, or one whose config or weights are
            not understood in full; the message says what it holds and what to give.
    """
    try:
        if (folder / MLP_CONFIG_FILE).is_file():
            return _read_mlp(folder, _read_config(folder / MLP_CONFIG_FILE))
        if (folder / PEFT_CONFIG_FILE).is_file():
            config = _read_config(folder / PEFT_CONFIG_FILE)
            _require_weights(folder)
            return _read_down_proj(folder, config) or read_foreign(folder, config)
    except (OSError, *DAMAGE) as error:
        raise ModelError(f"{folder}: the adapter cannot be read ({error!r})") from error
    raise ModelError(
        f"{folder} holds no adapter: it has neither {MLP_CONFIG_FILE} nor {PEFT_CONFIG_FILE}; give"
        " the adapter folder that pmlray size wrote, a run's in a store's adapters folder, or one"
        " that PEFT saved"
    )


def read_mergeable(folder: Path) -> ForeignAdapter:
    """Read an adapter whose weights PEFT can add to those of its base.

    ModelError as of `read_adapter`, and for one of the paper's blocks.
    """
    adapter = read_adapter(folder)
    if isinstance(adapter, ForeignAdapter):
        return adapter
    if adapter.placement.is_block:
        raise ModelError(
            f"{folder}: the adapter adds to the output of whole blocks, and no weight of its base"
            " can take that in; train one at linear modules, such as --placement down_proj or"
            " all-linear of pmlray size"
        )
    return read_foreign(folder, _read_config(folder / PEFT_CONFIG_FILE))


def _read_config(path: Path) -> dict[str, Any]:
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise TypeError(f"{path.name} is no JSON object")
    return config


def _require_weights(folder: Path) -> None:
    if (folder / WEIGHTS_FILE).is_file():
        return
    if (pickled := folder / PICKLED_FILE).is_file():
        raise ModelError(
            f"{folder}: {PICKLED_FILE} is a pickle, which can run any code when it is read; if you"
            f' trust it, convert it: python -c "import torch; from safetensors.torch import'
            f" save_file; save_file({{k: v.clone(memory_format=torch.contiguous_format) for k, v in"
            f" torch.load('{pickled}', map_location='cpu', weights_only=True).items()}},"
            f" '{folder / WEIGHTS_FILE}')\""
        )
    raise ModelError(f"{folder}: the adapter's weights, {WEIGHTS_FILE}, are missing")


def _read_mlp(folder: Path, config: Mapping[str, Any]) -> SiteAdapter:
    layers = config["layers"] if "layers" in config else [config["layer"]]
    if not isinstance(layers, list) or any(type(n) is not int for n in layers):
        raise TypeError("layers is no list of numbers")
    scale = config.get("scale", 1)
    placement = Placement(tuple(layers), (MLP_BLOCK,), alpha_per_rank=float(scale))
    names = {
        site: ("A", "B") if placement.kept_site else (f"{site.layer}.A", f"{site.layer}.B")
        for site in placement.sites
    }
    tensors = load_file(folder / WEIGHTS_FILE)
    known = MLP_CONFIG_KEYS | {"layers" if "layers" in config else "layer"}
    strange = (set(config) - {"scale"}) ^ known
    strange |= set(tensors) ^ {name for pair in names.values() for name in pair}
    if strange:
        raise ModelError(
            f"{folder}: the adapter lacks, or has beside what pmlray writes:"
            f" {', '.join(sorted(strange))}"
        )
    if not isinstance(config["base_model"], str) or config["placement"] != MLP_BLOCK:
        raise ModelError(
            f"{folder}: the adapter does not say which base model it is of, or where it sits in it"
        )
    weights = {}
    for site, (name_a, name_b) in names.items():
        a, b = tensors[name_a], tensors[name_b]
        if not (_are_factors(a, b) and a.shape[1] == config["lora_rank"]):
            found = " and ".join(str(tuple(x.shape)) for x in (a, b))
            raise ModelError(f"{folder}: {found} are no factors of rank {config['lora_rank']}")
        weights[site] = a.float(), b.float()
    return SiteAdapter(config["base_model"], placement, weights)


def _read_down_proj(folder: Path, config: Mapping[str, Any]) -> SiteAdapter | None:
    """Return a plain LoRA at one layer's `down_proj`; None where anything else is in the folder."""
    known = (
        all(
            key in INERT_KEYS
            or key in READ_KEYS
            or (key in OFF_KEYS and not value)
            or value in FIXED_KEYS.get(key, ())
            for key, value in config.items()
        )
        and config.get("peft_type") == "LORA"
        and not any((folder / name).exists() for name in TOKENIZER_FILES)
    )
    layers: Any = config.get("layers_to_transform")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    base_model, revision = config.get("base_model_name_or_path"), config.get("revision")
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    if not (
        known
        and config.get("target_modules") == ["down_proj"]
        and type(layer) is type(rank) is int
        and isinstance(alpha, int | float)
        and isinstance(base_model, str)
        and isinstance(revision, str | None)
        and isinstance(config.get("use_rslora", False), bool)
    ):
        return None
    tensors = load_file(folder / WEIGHTS_FILE)
    at = f"base_model.model.model.layers.{layer}.mlp.down_proj"
    names = [f"{at}.lora_A.weight", f"{at}.lora_B.weight"]
    if sorted(tensors) != names:
        return None
    a, b = (tensors[name].T for name in names)
    if not (_are_factors(a, b) and a.shape[1] == rank):
        return None
    placement = Placement(
        (layer,), (DOWN_PROJ,), float(alpha), use_rslora=bool(config.get("use_rslora"))
    )
    weights = {placement.sites[0]: (a.float().contiguous(), b.float().contiguous())}
    return SiteAdapter(base_model, placement, weights, revision)


def _are_factors(a: Tensor, b: Tensor) -> bool:
    numbers = a.is_floating_point() and b.is_floating_point()
    return numbers and a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] > 0
