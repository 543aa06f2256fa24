"""PEFT model of a base too large for one device: one adapter, records distributed over ranks.

The forward is PEFT's own, so that a framework may shard its weights. Every rank runs equally many
forwards, with rows of zero weight where it has none of its own: collectives need all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.packed_factors import initial_As
from pmlray.engine.adapters.peft_io import LLAMAS_NAMES, peft_settings
from pmlray.engine.model import checkpoint
from pmlray.engine.model.base_model import check_layers
from pmlray.engine.model.head import token_losses
from pmlray.memory import Record
from pmlray.types import PlannedRun


class SupervisedLosses(nn.Module):
    """Module that computes per-token losses of whole records under one adapter."""

    def __init__(self, peft_model: Any) -> None:
        super().__init__()
        self.adapted = peft_model

    def forward(self, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
        """Return the nll in nats and the argmax error of all supervised tokens, in order."""
        causal = self.adapted.get_base_model()
        device = next(self.adapted.parameters()).device
        rows = [torch.tensor([*r.prompt_ids, *r.supervised_ids[:-1]]) for r in records]
        longest = max(map(len, rows))
        ids = torch.stack([pad(row, (0, longest - len(row))) for row in rows]).to(device)
        # Right-padded and causal: padding changes no real position.
        hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
        scored = [
            hidden[i, len(r.prompt_ids) - 1 : len(r.prompt_ids) - 1 + len(r.supervised_ids)]
            for i, r in enumerate(records)
        ]
        targets = torch.tensor([t for r in records for t in r.supervised_ids], device=device)
        final = torch.cat(scored)
        # Granite's; its logits are linear in what the head reads.
        if (scaling := getattr(causal.config, "logits_scaling", 1)) != 1:
            final = final / scaling
        nll, wrong = causal.lm_head(final, targets)
        return nll, wrong

    def remove_adapter(self) -> None:
        """Remove the adapter from the base, which is then as it was before."""
        self.adapted.unload()


class ScoringHead(nn.Module):
    """Frozen head that scores tokens in chunks of logits.

    It is a module, so that a framework that shards its weight gathers it once for the whole call.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nll in nats and the argmax error of each token, (N,) each."""
        nll_N, wrong_N = token_losses(hidden_ND, self.weight, targets_N)
        return nll_N, wrong_N


def load_base(search: PreparedSearch) -> Any:
    """Load the base, with a ScoringHead, to the CPU or where a framework puts its parts.

    ModelError where it is not whole: every rank finds that in the headers, before any loads a part.
    """
    spec = search.spec
    base = checkpoint.load_weights(spec.model.id, _folder(search), spec.model.base_dtype)
    check_layers(search.placements.values(), base.config.num_hidden_layers)
    base.requires_grad_(False)
    base.lm_head = ScoringHead(base.lm_head.weight)
    return base


def load_tokenizer(search: PreparedSearch) -> Any:
    """Load the base's tokenizer; ModelError where it cannot be loaded or does not fit the base."""
    model_id, rows = search.spec.model.id, search.source.geometry.vocab
    return checkpoint.load_tokenizer(model_id, _folder(search), rows)


def _folder(search: PreparedSearch) -> Path:
    model = search.spec.model
    return checkpoint.folder_of(model.id, search.source, model.revision)


def adapted_model(base: Any, search: PreparedSearch, run: PlannedRun) -> SupervisedLosses:
    """Return the base with the run's fresh adapter.

    It is initialised as in the packed engine: the same A, B at 0, scale 1.
    """
    from peft import LoraConfig, get_peft_model

    placement, modules = search.placement_of(run.point), search.source.geometry.modules
    rank = run.point.lora_rank
    config = LoraConfig(task_type="CAUSAL_LM", **peft_settings(placement, rank))
    model = get_peft_model(base, config)
    drawn = initial_As({s: modules[s.module] for s in placement.sites}, rank, run.seed)
    named = {f"{LLAMAS_NAMES.of_site(site)}.lora_A.": a.T for site, a in drawn.items()}
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_A." in name:
                values.copy_(named[name[: name.index("lora_A.") + len("lora_A.")]])
    return SupervisedLosses(model)


def share_of(records: Sequence[Record], rank: int, world: int) -> tuple[list[Record], bool]:
    """Return a rank's records of a step, and whether they count; a rank without any gets one.

    That is the first record, with zero weight.
    """
    own = list(records[rank::world])
    return (own, True) if own else ([records[0]], False)
