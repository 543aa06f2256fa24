"""Model card of a search's adapter: README.md beside its weights, for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from pmlray.config.model_card import card_head, loading
from pmlray.config.search_spec import SearchSpec
from pmlray.types import Observation, Recall

MODEL_CARD = "README.md"


def write_card(folder: Path, spec: SearchSpec, o: Observation) -> None:
    """Write an adapter's card: its origin, its measured recall, and how to load it."""
    (folder / MODEL_CARD).write_text(adapter_card(spec, o), encoding="utf-8")


def _recalled(recall: Recall) -> str:
    if recall.answered is None:
        return "records recalled word for word (no end was trained)"
    return "records recalled word for word, and then the end"


def adapter_card(spec: SearchSpec, o: Observation) -> str:
    """Return the card's text."""
    p, recall = o.point, o.recall
    pinned = f" at {spec.model.revision}" if spec.model.revision else ""
    return f"""{card_head(spec)}# Adapter of rank {p.lora_rank} for {spec.model.id}{pinned}

Trained by {o.method} for {p.train_steps} steps on {o.supervised_tokens} target tokens of task
{o.task} (sequence {o.sequence_id}, seed {o.seed}), at {spec.probe.placement} of layer
{spec.probe.layer}; prompts in the {spec.task.prompt_format} format, base in
{spec.model.base_dtype}.

| measured | |
|---|---|
| loss before, nats per token | {o.base_loss:.4f} |
| loss after, nats per token | {o.final_loss:.4f} |
| tokens recalled (argmax) | {recall.token:.4f} |
| records answered right | {recall.right_answers:.4f} |
| {_recalled(recall)} | {recall.exact:.4f} |
| gpu_seconds | {o.gpu_seconds:.2f} |

{loading(spec, o.provenance.get("end_id"))}
A run of the search {spec.search_id} (run_key {o.run_key}), by pmlray. It holds what it was trained
on word for word: publish it where you may publish that text, and state a licence that the base
model's allows.
"""
