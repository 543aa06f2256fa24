"""A sizing's plan and result, in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmlray.api.records.prompts import CHAT_PROMPTS
from pmlray.study.sizing.card import describe_answer, describe_recall, describe_start
from pmlray.study.sizing.decide_placement import WORDS
from pmlray.study.sizing.request import EPOCHS

# 300 facts stood at 1.4 nats after eleven epochs, at a rank that could hold them many times over
# (scripts/bench/results/rates.md).
FEW_EPOCHS = (
    f"   few epochs: without --steps every record is seen {EPOCHS} times; far below that the steps"
    " may limit what is recalled, and not the rank"
)


def describe_plan(plan: Mapping[str, Any]) -> str:
    """Describe what a sizing would do and cost, from its JSON object."""
    law, unit = plan["law"], f"{plan['device']}-seconds"
    search = (
        f"use the law in {law}"
        if law is not None
        else f"search the law with {_ranks(plan)} on subsets of {plan['seq_lens']}"
        f" tokens, about {_seconds(plan['predicted_search_gpu_seconds'])} {unit}"
    )
    sized = plan["answer"]
    chosen = [] if sized is None else [f"   {line}" for line in describe_answer(sized).splitlines()]
    few = "a run of the search is" if law is None else "few of the steps are"
    fewest, most_seconds = plan["predicted_gpu_seconds_range"]
    rates = {
        "calibrated": "by a few steps that were taken here"
        f" ({_seconds(plan['calibration_gpu_seconds'])} {unit})",
        "law": "by what the law's own runs took",
        "guessed": "guessed from the model's size: nothing was measured here",
    }[plan["rates"]]
    compared = plan.get("placements", ())
    at = f"at the best of {len(compared)} placements" if compared else f"at {plan['placement']}"
    most = "" if compared else f", at most {plan['largest_rank']}"
    choose = f"the placement with the {WORDS[plan['prefer']]}, and its" if compared else "the"
    dearest = " at the dearest placement" if compared else ""
    few_epochs = plan["epochs"] < EPOCHS / 2
    return "\n".join(
        [
            f"{plan['n_records']} records{repeated(plan)}, {plan['supervised_tokens']} target"
            f" tokens, {at} of {plan['model']}",
            *([CHAT_PROMPTS] if plan["prompt_format"] == "chat" else []),
            f"1. {search}",
            *(_place_line(row, unit) for row in compared),
            f"2. choose {choose} rank for a recall of {plan['recall']:.4g} at"
            f" {100 * plan['confidence']:.4g} % confidence{most}",
            *chosen,
            f"3. train it on all records for at most {plan['train_steps']} steps"
            f" ({plan['epochs']:.3g} epochs), about"
            f" {_seconds(plan['predicted_training_gpu_seconds'])} {unit}{dearest}"
            + (", unless a run of the search is enough" if law is None else ""),
            "4. check it by greedy decoding; a larger rank, trained anew, if it recalls too little",
            *([FEW_EPOCHS] if few_epochs else []),
            f"in all about {_seconds(plan['predicted_gpu_seconds'])} {unit}, {rates};"
            f" {_seconds(fewest)} where {few} enough, {_seconds(most_seconds)} where a second rank"
            " has to be trained, and so on",
            "that is optimiser steps and the checks between them; loading, starting Ray and"
            " decoding come on top",
            f"results in {plan['out']}",
        ]
    )


def _ranks(plan: Mapping[str, Any]) -> str:
    if "placements" not in plan:
        return f"ranks {plan['lora_ranks']}"
    return f"adapters at {len(plan['placements'])} placements"


def _place_line(row: Mapping[str, Any], unit: str) -> str:
    """Describe a compared placement: its sites, ranks, parameters and cost."""
    ranks, per_rank = row["lora_ranks"], row["params_per_rank"]
    return (
        f"   {row['name']} ({row['placement']}): ranks {ranks}, {per_rank} parameters a rank; about"
        f" {_seconds(row['predicted_training_gpu_seconds'])} {unit} a training"
    )


def repeated(found: Mapping[str, Any]) -> str:
    """Return how many rows of a file repeat a record, in brackets; empty where none does."""
    n = found["n_duplicates"]
    return f" ({n} more rows repeat one of them)" if n else ""


def _seconds(gpu_seconds: float) -> str:
    return f"{gpu_seconds:.0f}" if gpu_seconds >= 10 else f"{gpu_seconds:.2g}"


def describe_size(found: Mapping[str, Any]) -> str:
    """Describe the result of a sizing, from its JSON object."""
    recall, own, cost = found["recall"], found["adapter"], found["cost"]
    walls = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in cost["wall_seconds"].items())
    lines = [
        f"rank {own['lora_rank']} recalls {describe_recall(recall, found['holds']['n_records'])}"
        f" ({recall['exact_recall']:.4f}; {recall['wanted']:.4g} wanted)"
        f"{repeated(found['holds'])}",
        f"sized beforehand: {describe_answer(found['sized'])}",
        f"spent {cost['search_gpu_seconds']:.0f} gpu_seconds on the law and"
        f" {cost['training_gpu_seconds']:.0f} on training; wall time: {walls}",
        f"adapter, card and the records not recalled: {found['adapter_folder']}",
    ]
    if found["prompt_format"] == "chat":
        lines.insert(
            1, "ask it through the base's chat template, as the code in its README.md does"
        )
    if (began := own["from_adapter"]) is not None:
        lines.insert(1, describe_start(began))
    if not recall["reached"]:
        lines.append(
            "even the largest rank recalls too little: train longer (--steps), allow a larger rank"
            " (--max-rank), or split the records over several adapters"
        )
    return "\n".join(lines)
