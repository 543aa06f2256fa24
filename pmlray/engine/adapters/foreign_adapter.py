"""Adapters that PEFT itself loads and runs, on a base as transformers has it.

PEFT warns of some of what it does not use, and is silent about the rest: all of it is refused here.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.adapters.placement import DOWN_PROJ, Placement
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource
from pmlray.engine.adapters.peft_io import WEIGHTS_FILE
from pmlray.engine.model.base_model import BaseModel, load_plain_model
from pmlray.engine.model.checkpoint import PLAIN_TOKENIZER
from pmlray.engine.model.general_base import GeneralBase
from pmlray.errors import ModelError

TOKENIZER_FILE = "tokenizer_config.json"
ADAPTER = "default"  # PEFT's name of the adapter in the model
PREFIX = "base_model.model."  # of the names of modules in PEFT's weights
EMBEDDINGS = ("embed_tokens.weight", "embed_tokens.base_layer.weight")
HEAD = ("lm_head.weight", "lm_head.base_layer.weight")
# Words of PEFT's warnings that something in the config or the weights is not used.
NOT_USED = re.compile(r"ignor|did not match|no modules? w|will not be|inconsistency", re.I)
# What PEFT raises for a config or weights that it cannot use.
PEFT_ERRORS = (
    OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, ImportError, re.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ForeignAdapter:
    """An adapter that PEFT loads.

    Attributes:
        folder: holds PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        config: PEFT's config, with nothing left out.
        sizes: shape of every stored tensor.
    """

    folder: Path
    config: Any
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def base_model(self) -> str | None:
        """The base that the config names; None where it names none."""
        return self.config.base_model_name_or_path

    @property
    def revision(self) -> str | None:
        """Revision of the base, where the config names one."""
        return self.config.revision

    @property
    def lora_rank(self) -> int:
        """Rank by the config; 1 for methods without one."""
        rank = getattr(self.config, "r", None)
        return rank if isinstance(rank, int) and rank > 0 else 1

    @property
    def placement(self) -> Placement:
        """A layer that every base has: where the adapter sits is PEFT's matter."""
        return Placement((0,), (DOWN_PROJ,))

    @property
    def title(self) -> str:
        """What the adapter is, in a few words."""
        return f"an adapter of PEFT ({self.config.peft_type.value})"

    def load_base(self, model: Model, source: ModelSource, device: torch.device) -> BaseModel:
        """Load the base, unchanged but for the tokens that the adapter adds.

        The tokenizer is the one in the adapter's folder, if there is one, and the embeddings have
        the rows that the adapter holds, or else that its tokenizer needs, as in PEFT's
        AutoPeftModel. Raises ModelError.
        """
        loaded, tokenizer = load_plain_model(
            model.id, source, model.revision, model.base_dtype, device
        )
        if (self.folder / TOKENIZER_FILE).is_file():
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **PLAIN_TOKENIZER)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._refused(f"its tokenizer cannot be loaded: {error}") from error
        rows = loaded.get_input_embeddings().num_embeddings
        self._check_tokens(tokenizer, rows)
        wanted = self._stored_rows(HEAD + EMBEDDINGS) or max(rows, len(tokenizer))
        if wanted != rows:
            loaded.resize_token_embeddings(wanted)
        loaded.requires_grad_(False)
        loaded.eval()
        return GeneralBase(loaded.to(device), tokenizer, (self.placement,))

    def _stored_rows(self, names: tuple[str, ...]) -> int | None:
        """Return the rows of stored embeddings, which replace the base's; None without any."""
        return next((s[0] for n, s in self.sizes.items() if s and n.endswith(names)), None)

    def _check_tokens(self, tokenizer: Any, rows: int) -> None:
        """Check that the adapter holds the embedding of every token that the base has not.

        It would be made up. One that only pads is never read.
        """
        if self._stored_rows(EMBEDDINGS) is not None:
            return
        given = getattr(self.config, "trainable_token_indices", None)
        given = given or getattr(self.config, "token_indices", None) or []
        held = {i for ids in given.values() for i in ids} if isinstance(given, dict) else {*given}
        lacking = set(range(rows, len(tokenizer))) - held - {tokenizer.pad_token_id}
        if lacking:
            tokens = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(lacking))))
            raise self._refused(f"its weights lack the embeddings of its tokenizer's {tokens}")

    @contextmanager
    def attached(self, base: BaseModel) -> Generator[BaseModel]:
        """Give a base with the adapter; the base without it stays as it was.

        Both share all weights but those that the adapter replaces. ModelError as of `adapted`.
        """
        yield dataclasses.replace(base, model=self.adapted(base).get_base_model())

    def adapted(self, base: BaseModel) -> Any:
        """Return PEFT's model of a copy of the base with the adapter.

        ModelError where PEFT cannot load the adapter, or would leave a part of it out.
        """
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                adapted, unused = self._load(base)
            except KeyError as error:
                raise self._refused(f"its weights lack {error.args[0]}") from error
            except PEFT_ERRORS as error:
                raise self._refused(" ".join(str(error).split())) from error
        unused += [str(w.message) for w in told if NOT_USED.search(str(w.message))]
        if unused:
            raise self._refused("; ".join(unused))
        return adapted

    def _load(self, base: BaseModel) -> tuple[Any, list[str]]:
        """Return PEFT's model, and what of the adapter is not in it."""
        from peft import PeftModelForCausalLM

        config, model = copy.deepcopy(self.config), self._copy(base.model)
        adapted = PeftModelForCausalLM(model, config, ADAPTER)
        loaded = adapted.load_adapter(str(self.folder), ADAPTER, torch_device=str(base.device))
        unused = [f"the model has no {name}" for name in loaded.unexpected_keys]
        unused += [f"the weights lack {name}" for name in loaded.missing_keys]
        if getattr(config, "bias", "none") != "none":
            unused += [f"the weights lack {name}" for name in self._missing_biases(adapted)]
        unused += _unmatched(base.model, adapted, self.config)
        if not unused and not _same_forward(adapted, model, base.device):
            unused.append(
                f"{config.peft_type.value} is not applied in the base's layers, where pmlray"
                " decodes"
            )
        return adapted, unused

    def _copy(self, model: nn.Module) -> Any:
        """Return a copy of the model that shares the weights that the adapter does not replace."""
        stored = {name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in self.sizes}
        named = model.named_parameters(remove_duplicate=False)
        replaced = {id(weight) for name, weight in named if name in stored}
        memo = {
            id(weight): nn.Parameter(
                weight.detach().clone() if id(weight) in replaced else weight.detach(),
                requires_grad=False,
            )
            for weight in model.parameters()
        }
        return copy.deepcopy(model, memo)

    def _missing_biases(self, adapted: Any) -> list[str]:
        """Return the biases that PEFT would save with this config and that are not stored."""
        from peft import get_peft_model_state_dict

        saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        return sorted(name for name in saved if name.endswith("bias") and name not in self.sizes)

    def _refused(self, why: str) -> ModelError:
        return ModelError(f"{self.folder}: PEFT cannot use the adapter as it is: {why}")


def read_foreign(folder: Path, config: Mapping[str, Any]) -> ForeignAdapter:
    """Read the config of an adapter for PEFT, and the shapes of its weights.

    Args:
        folder: holds `adapter_model.safetensors`.
        config: the content of `adapter_config.json`.

    Raises:
        ModelError: PEFT does not know its type, or one of its keys; or it is not for a causal
            language model, or needs what only PEFT's own `generate` does.
    """
    # Imported here, as it takes seconds and pmlray's own adapters do not need it.
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    peft_type, task = config.get("peft_type"), config.get("task_type")
    kinds: Mapping[str, Any] = {kind.value: c for kind, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kinds.get(peft_type) if isinstance(peft_type, str) else None
    if kind is None:
        raise ModelError(f"{folder}: PEFT here has no adapters of peft_type {peft_type!r}")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{folder}: the adapter is for task_type {task!r}; pmlray checks those of causal"
            " language models, CAUSAL_LM"
        )
    fields = {field.name for field in dataclasses.fields(kind)} - {"runtime_config"}
    unknown = sorted(k for k, value in config.items() if k not in fields and value is not None)
    if unknown:
        raise ModelError(
            f"{folder}: PEFT here does not know {', '.join(unknown)} of adapter_config.json and"
            " would ignore it; install the version of PEFT that wrote it"
            f" ({config.get('peft_version') or 'not named'})"
        )
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder}: alora_invocation_tokens makes an adapter that sets in only at those tokens;"
            " pmlray does not decode with such adapters"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = kind(**{k: value for k, value in config.items() if k in fields})
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    except PEFT_ERRORS as error:
        raise ModelError(f"{folder}: the adapter cannot be read ({error!r})") from error
    named = (made.base_model_name_or_path, made.revision)
    if made.is_prompt_learning or not all(isinstance(x, str | None) for x in named):
        raise ModelError(
            f"{folder}: pmlray does not decode with adapters of peft_type {peft_type} that are not"
            " in the base's layers"
            if made.is_prompt_learning
            else f"{folder}: base_model_name_or_path and revision are no names"
        )
    made.inference_mode = True
    return ForeignAdapter(folder, made, sizes)


def _unmatched(bare: nn.Module, adapted: Any, config: Any) -> list[str]:
    """Return the entries of the config that no module of the model answers to."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    targets: Sequence[str] = getattr(adapted.base_model, "targeted_module_names", ())
    modules = [name for name, _ in bare.named_modules()]
    whole = [name for name, m in adapted.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    found = []
    named = getattr(config, "target_modules", None)
    if named is not None and not isinstance(named, str):
        found += [
            f"no module is named {entry!r} of target_modules"
            for entry in sorted(named)
            if not any(name == entry or name.endswith(f".{entry}") for name in modules)
        ]
    layers = getattr(config, "layers_to_transform", None)
    found += [
        f"no adapted module is in layer {layer} of layers_to_transform"
        for layer in ([layers] if isinstance(layers, int) else layers or [])
        if not any(f".{layer}." in f".{name}" for name in targets)
    ]
    found += [
        f"no module is named {entry!r} of modules_to_save"
        for entry in getattr(config, "modules_to_save", None) or []
        if not any(name.endswith(entry) for name in whole)
    ]
    return found


@torch.no_grad()
def _same_forward(adapted: Any, model: Any, device: torch.device) -> bool:
    """Return whether PEFT's forward is that of the model whose layers it replaced."""
    ids = torch.tensor([[0, 1, 2]], device=device)
    return torch.equal(adapted(input_ids=ids).logits, model(input_ids=ids).logits)
