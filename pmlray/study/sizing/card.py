"""Card of a sized adapter, as JSON and as text: what it holds, its law and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pmlray.config.adapters.model_card import card_head, loading
from pmlray.config.prepared_search import PreparedSearch
from pmlray.law import FitStatus, LawSummary
from pmlray.law.capacity import stored_bits
from pmlray.study.sizing.choose_rank import RankChoice
from pmlray.study.sizing.decide_placement import describe_decision
from pmlray.study.sizing.request import RecordSet, Wanted
from pmlray.types import Observation

CARD_JSON, TEXT_FILE = "card.json", "README.md"
# What is said of every attempt's recall.
SHARES = ("n_answered", "n_ended", "n_recalled", "exact_recall", "end")
NOT_RECALLED_FILE = "not_recalled.jsonl"
# What leaves a law open takes several lines, which the card's JSON has, and `pmlray fit` shows.
GO_BY_RECALL = (
    "go by the recall that decoding finds, not by this law; `pmlray fit` on its store names the"
    " runs that would settle it"
)


def plain(number: float) -> float | None:
    """Return a number for JSON; infinities and NaN become None."""
    return number if math.isfinite(number) else None


def answer(
    choice: RankChoice, wanted: Wanted, law: LawSummary, params_per_rank: int, gpu_seconds: float
) -> dict[str, Any]:
    """Return the answer of `pmlray size` before it trains: JSON types, inf as null.

    Each end of `interval` is a one-sided bound at `confidence`; both together hold the rank with
    the smaller probability `interval_level`. gpu_seconds: predicted for training an adapter of the
    chosen rank.
    """
    point = choice.point
    n_params = point.lora_rank * params_per_rank
    bits = stored_bits(choice.delta_loss, point.seq_len, n_params)
    return {
        "lora_rank": point.lora_rank,
        "basis": choice.basis,
        "law_lora_rank": plain(choice.rank.value),
        "interval": [plain(choice.rank.low), plain(choice.rank.high)],
        "confidence": wanted.confidence,
        "interval_level": round(2.0 * wanted.confidence - 1.0, 12),
        "law_status": str(law.fit.status),
        "law_n_obs": law.fit.n_obs,
        "law_headline": law.headline,
        "law_message": law.fit.message,
        "parameters": n_params,
        "bits": bits.total,
        "bits_per_parameter": bits.per_param,
        "supervised_tokens": point.seq_len,
        "train_steps": point.train_steps,
        "needed_loss": choice.needed.value,
        "needed_loss_by": choice.needed.basis,
        "no_recall_law": choice.needed.why,
        "needed_delta_loss": choice.delta_loss,
        "predicted_gpu_seconds": gpu_seconds,
    }


def describe_answer(found: Mapping[str, Any]) -> str:
    """Describe the answer: the placement where several were compared, the rank, the law used."""
    low, high = ("inf" if x is None else f"{x:.3g}" for x in found["interval"])
    value = "inf" if found["law_lora_rank"] is None else f"{found['law_lora_rank']:.3g}"
    sure = f"at {100 * found['confidence']:.4g} % confidence"
    why = {
        "law": f"the law's upper bound {sure}, rounded up",
        "measured": "a run of the search at this rank recalled enough",
        "failed_below": "a run of the search at one rank less recalled too little, though the law's"
        " bound is lower",
        "largest": f"the largest that the search was planned for; what is enough {sure} lies above"
        " it, the law's estimate does not",
        "estimate": "the law's estimate, rounded up; ranks near it were not measured, so that its"
        " bound there is none to train by",
        "start": "that of the adapter that it begins with; less would do for these records alone",
    }[found["basis"]]
    by = (
        "by the law of recall of the law's runs"
        if found["needed_loss_by"] == "recall_law"
        else f"by a rule of thumb, since no law of recall holds: {found['no_recall_law']}"
    )
    law = found["law_status"] + (
        f": {GO_BY_RECALL}"
        if found["law_status"] == FitStatus.UNDERDETERMINED
        else f". {found['law_headline']}"
    )
    return (f"{describe_decision(found['decision'])}\n" if "decision" in found else "") + (
        f"rank {found['lora_rank']}: {why} (the law's estimate {value}, one-sided bounds {low} and"
        f" {high} {sure})\n"
        f"{found['parameters']} parameters for {found['bits']:.0f} bits in"
        f" {found['supervised_tokens']} tokens, about {found['predicted_gpu_seconds']:.0f}"
        f" gpu_seconds for {found['train_steps']} steps\n"
        f"plain fine-tuning needs a loss of at most {found['needed_loss']:.3g} nats per token,"
        f" {by}\n"
        f"law of {found['law_n_obs']} runs, status {law}"
    )


def describe_recall(recall: Mapping[str, Any], n_records: int) -> str:
    """Describe the shares of `DecodedRecords.counts` in one phrase."""
    if recall["end"]:
        return (
            f"{recall['n_recalled']} of {n_records} records word for word and then the end of the"
            f" answer; {recall['n_answered']} answers begin with the target"
        )
    return (
        f"{recall['n_recalled']} of {n_records} records word for word, whatever follows:"
        f" {recall['n_ended']} answers end there"
    )


def describe_start(began: Mapping[str, Any]) -> str:
    """Describe the adapter that a run began with, and what is not known of it, in one line."""
    return (
        f"It began with an adapter of rank {began['lora_rank']} (SHA-256 {began['sha256']}), under"
        f" which these records had a loss of {began['start_loss']:.3g} nats per token. How many of"
        " the records that one held are still recalled is not known: pmlray recall with those"
        " records tells."
    )


def make_card(
    search: PreparedSearch,
    records: RecordSet,
    wanted: Wanted,
    sized: Mapping[str, Any],
    law: LawSummary,
    adapter: Observation,
    attempts: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the card of the adapter that is kept.

    search: that of its training; adapter: its observation; attempts: of every rank tried, the kept
    one's recall by real decoding among them.
    """
    spec = search.spec
    kept = next(a for a in attempts if a["run_key"] == adapter.run_key)
    n_params = sized["parameters"] // sized["lora_rank"] * adapter.point.lora_rank
    bits = stored_bits(adapter.delta_loss, adapter.supervised_tokens, n_params)
    return {
        "base_model": {
            "id": spec.model.id,
            "revision": spec.model.revision,
            "identity": search.source.identity,
            "dtype": spec.model.base_dtype,
        },
        "prompt_format": spec.task.prompt_format,
        "end": spec.task.end,
        "end_id": adapter.provenance.get("end_id"),
        "adapter": {
            "lora_rank": adapter.point.lora_rank,
            **_sites(search),
            "from_adapter": adapter.provenance.get("from_adapter"),
            "parameters": n_params,
            "method": adapter.method,
            "train_steps": adapter.point.train_steps,
            "recipe": spec.recipe.model_dump(),
        },
        "holds": {
            "n_records": len(records.pairs),
            "n_duplicates": records.n_duplicates,
            "supervised_tokens": adapter.supervised_tokens,
            "content_hash": records.content_hash,
            "base_loss": adapter.base_loss,
            "final_loss": adapter.final_loss,
            "bits": bits.total,
            "bits_per_parameter": bits.per_param,
        },
        "recall": {
            "wanted": wanted.recall,
            "reached": kept["exact_recall"] >= wanted.recall,
            **{name: kept[name] for name in SHARES},
            "checked_by": "greedy decoding of every record",
        },
        "sized": dict(sized),
        "law": {
            **law.fit.law.to_json(),
            "status": str(law.fit.status),
            "n_obs": law.fit.n_obs,
            "weights": dict(law.weights),
            "headline": law.headline,
            "message": law.fit.message,
        },
        "attempts": [dict(attempt) for attempt in attempts],
        "cost": dict(cost),
    }


def _sites(search: PreparedSearch) -> dict[str, Any]:
    """Return where an adapter sits: a probe's name and layer, or PEFT's settings."""
    if search.spec.probe is not None:
        return search.spec.probe.model_dump()
    return {"placement": search.describe_place(), **search.placement.to_json()}


def describe_card(card: Mapping[str, Any], search: PreparedSearch) -> str:
    """Return the card as Markdown, for people and the hub; `search` is that of its training."""
    spec = search.spec
    base, own, holds = card["base_model"], card["adapter"], card["holds"]
    recall, sized, law, cost = card["recall"], card["sized"], card["law"], card["cost"]
    pinned = f" at {base['revision']}" if base["revision"] else ""
    tries = ", ".join(
        f"rank {a['lora_rank']} recalled {a['n_recalled']} ({a['exact_recall']:.4f})"
        for a in card["attempts"]
    )
    beside = ""
    if own["method"] != "sft":
        beside = (
            f"\nIt is of plain fine-tuning's loss. {own['method']} trains only what is not yet sure"
            " to be decoded, so that its loss is higher at the same recall."
        )
    began = f"\n\n{describe_start(start)}" if (start := own["from_adapter"]) is not None else ""
    head = card_head(spec, search.placement)
    code = loading(
        *(spec, search.source.geometry, search.placement, own["lora_rank"], card["end_id"]),
        search.task.has_conversations,
    )
    return f"""{head}# Adapter of rank {own["lora_rank"]} for {base["id"]}{pinned}

Holds {holds["n_records"]} records ({holds["supervised_tokens"]} target tokens, content
{holds["content_hash"]}) with {own["parameters"]} parameters at {search.describe_place()}:
{holds["bits"]:.0f} bits, {holds["bits_per_parameter"]:.3g} a parameter. Prompts are the queries in
the {card["prompt_format"]} format, in {base["dtype"]}.

Recall: {describe_recall(recall, holds["n_records"])}
({recall["exact_recall"]:.4f}; {recall["wanted"]:.4g} wanted), checked by {recall["checked_by"]}.
Those missed are in {NOT_RECALLED_FILE}. Tried: {tries}.{began}

Sized by: {describe_answer(sized)}

The law's form is {law["form"]}.{beside}

Cost: {cost["search_gpu_seconds"]:.0f} gpu_seconds for the law, {cost["training_gpu_seconds"]:.0f}
for adapters beside it ({own["train_steps"]} steps of {own["method"]}), unit {cost["unit"]}.

{code}"""
