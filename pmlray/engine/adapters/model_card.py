"""Model card of a search's adapter: README.md beside its weights, for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from pmlray.config.adapters.model_card import card_head, loading
from pmlray.config.prepared_search import PreparedSearch
from pmlray.types import Observation, Recall

MODEL_CARD = "README.md"


def write_card(folder: Path, search: PreparedSearch, o: Observation) -> None:
    """Write an adapter's card: its origin, its measured recall, and how to load it."""
    (folder / MODEL_CARD).write_text(adapter_card(search, o), encoding="utf-8")


def _recalled(recall: Recall) -> str:
    if recall.answered is None:
        return "records recalled word for word (no end was trained)"
    return "records recalled word for word, and then the end"


def _began(o: Observation) -> str:
    found = o.provenance.get("from_adapter")
    if found is None:
        return ""
    return (
        f"It began with an adapter of rank {found['lora_rank']} (SHA-256 {found['sha256']}), under"
        f" which the loss was {found['start_loss']:.4f}; what of that one's text it still recalls"
        " was not measured.\n\n"
    )


def adapter_card(search: PreparedSearch, o: Observation) -> str:
    """Return the card's text."""
    spec, p, recall = search.spec, o.point, o.recall
    n_params = p.lora_rank * search.params_per_rank_of(p)
    pinned = f" at {spec.model.revision}" if spec.model.revision else ""
    head = card_head(spec, search.placement_of(p))
    return f"""{head}# Adapter of rank {p.lora_rank} for {spec.model.id}{pinned}

Trained by {o.method} for {p.train_steps} steps on {o.supervised_tokens} target tokens of task
{o.task} (sequence {o.sequence_id}, seed {o.seed}): {n_params} parameters at
{search.describe_place(p.placement)}; prompts in the {spec.task.prompt_format} format, base in
{spec.model.base_dtype}.

| measured | |
|---|---|
| loss before, nats per token | {o.base_loss:.4f} |
| loss after, nats per token | {o.final_loss:.4f} |
| tokens recalled (argmax) | {recall.token:.4f} |
| records answered right | {recall.right_answers:.4f} |
| {_recalled(recall)} | {recall.exact:.4f} |
| gpu_seconds | {o.gpu_seconds:.2f} |

{_began(o)}{_code(search, o)}
A run of the search {spec.search_id} (run_key {o.run_key}), by pmlray. It holds what it was trained
on word for word: publish it where you may publish that text, and state a licence that the base
model's allows.
"""


def _code(search: PreparedSearch, o: Observation) -> str:
    end_id, placement = o.provenance.get("end_id"), search.placement_of(o.point)
    return loading(
        *(search.spec, search.source.geometry, placement, o.point.lora_rank, end_id),
        search.task.has_conversations,
    )
