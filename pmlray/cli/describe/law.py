"""Findings of a search, in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmlray.cli.describe.placements import choice_lines, worth_lines


def describe_law_json(law: Mapping[str, Any]) -> str:
    """Describe a fitted law and what qualifies it, held-out error first, from its JSON object."""
    lines = [
        law["headline"],
        f"{law['form']} law of delta_loss (nats per token), {law['n_obs']} points"
        f" ({law['n_censored']} set aside or censored), status {law['status']}",
    ]
    if law.get("n_left_out"):
        lines.append(f"  {law['n_left_out']} optimisation-limited runs were left out")
    if law.get("message"):
        lines.append(f"  {law['message']}")
    lines += [f"  {note}" for note in law.get("limits", ())]
    for name, (low, high) in law["intervals"].items():
        lines.append(f"  {name:18} {law[name]:10.4g}   90 % interval [{low:.4g}, {high:.4g}]")
    for name in ("extrapolation_mape", "heldout_mape", "sequence_mape", "mape", "r2"):
        if law.get(name) is not None:
            lines.append(f"  {name:18} {law[name]:10.4f}")
    weights = ", ".join(f"{form} {weight:.2f}" for form, weight in law["weights"].items())
    lines.append(f"  weights of the forms: {weights}")
    lines += worth_lines(law.get("worth", {}))
    lines += [_target_line(target) for target in law["targets"]]
    lines += [line for size in law["sizes"] for line in _size_lines(size)]
    lines += [line for choice in law.get("choices", ()) for line in choice_lines(choice)]
    return "\n".join([*lines, *_residual_lines(law)])


def describe_checklist(law: Mapping[str, Any]) -> str:
    """Describe what a reader needs to repeat the fit, from its JSON object."""
    items = law["checklist"].items()
    return "\n".join(["to reproduce the fit:", *(f"  {name}: {text}" for name, text in items)])


def _at(point: Mapping[str, Any]) -> str:
    steps = f" train_steps={point['train_steps']}" if point["train_steps"] else ""
    return f"lora_rank={point['lora_rank']} seq_len={point['seq_len']}{steps}"


def _in(found: Mapping[str, Any]) -> str:
    return f" in {found['placement']}" if "placement" in found else ""


def _target_line(target: Mapping[str, Any]) -> str:
    return (
        f"  at {_at(target)}{_in(target)}: delta_loss {target['delta_loss']:.4g}"
        f" [{target['low']:.4g}, {target['high']:.4g}] nats per token,"
        f" {target['stored_bits']:.4g} bits stored; one more run would measure"
        f" [{target['run_low']:.4g}, {target['run_high']:.4g}]"
    )


def _size_lines(size: Mapping[str, Any]) -> list[str]:
    lines = [f"  for delta_loss {size['delta_loss']:.4g} around {_at(size['point'])}{_in(size)}:"]
    for name, words in (
        ("lora_rank", "rank needed"),
        ("seq_len", "longest seq_len"),
        ("train_steps", "steps needed"),
    ):
        if (found := size[name]) is not None:
            value, low, high = (
                "inf" if found[k] is None else f"{found[k]:.4g}" for k in ("value", "low", "high")
            )
            lines.append(f"    {words:16} {value}   90 % interval [{low}, {high}]")
    return lines


def _residual_lines(law: Mapping[str, Any]) -> list[str]:
    found = law["residuals"]
    lines: list[str] = []
    tested = {t["along"]: t["p_value"] for t in found["trends"] if t["p_value"] is not None}
    if found["structure_left"]:
        left = ", ".join(f"{along} (p {tested[along]:.2g})" for along in found["structure_left"])
        lines.append(f"  residuals still follow {left}: the form misses something there")
    elif tested:
        lines.append(f"  residuals follow none of {', '.join(tested)}")
    if (spread := found["spread"]) is not None:
        lines.append(
            f"  noise {spread['between']:.3g} nats between (sequence, seed) pairs,"
            f" {spread['within']:.3g} within"
        )
    pairs = law["correlations"]["entangled"]
    if pairs:
        shown = ", ".join(f"{p['first']} and {p['second']} {p['correlation']:.3f}" for p in pairs)
        lines.append(f"  known only in combination, correlation above 0.95: {shown}")
    return lines


def _left_out(found: Mapping[str, Any]) -> str:
    n = found.get("n_left_out_of_packs", 0)
    return f", {n} left out so that no pack overspent" if n else ""


def describe_result(found: Mapping[str, Any]) -> str:
    """Describe the whole result of a search, from its JSON object."""
    seconds = found["gpu_seconds"]
    lines = [*found.get("answer", ()), ""]
    lines += [
        f"{found['search_id']}: {found['n_observations']} law observations in {found['rounds']}"
        f" rounds, {found['n_failed']} failed{_left_out(found)};"
        f" {seconds['spent']:.0f} of {seconds['budget']:.0f} gpu_seconds"
    ]
    law = found["law"] and found["law"] | {"n_left_out": found["n_left_out"]}
    lines.append(describe_law_json(law) if law else "too few points for a law")
    for pair in found["memft"]:
        point = pair["point"]
        lines.append(
            f"  {pair['method']} against sft at lora_rank={point['lora_rank']}{_in(point)}"
            f" seq_len={point['seq_len']} sequence={pair['sequence_id']} seed={pair['seed']}:"
            f" token_recall {pair['memft']['token_recall']:.3f} / {pair['sft']['token_recall']:.3f}"
            f", exact_recall {pair['memft']['exact_recall']:.2f} /"
            f" {pair['sft']['exact_recall']:.2f}"
        )
    lines.append(f"report: {found['report']}")
    lines += tracking_lines(found)
    return "\n".join(lines)


def tracking_lines(found: Mapping[str, Any]) -> list[str]:
    """Return how to see the runs in MLflow, as far as the facts of a result tell it."""
    uri, page = found.get("tracking_uri"), found.get("tracking_page")
    if not uri:
        return []
    served = uri.startswith("http")
    lines = [] if served else [f"MLflow: mlflow ui --backend-store-uri {uri}"]
    if page is not None:
        lines.append(f"runs in MLflow: {page}")
    return lines or [f"MLflow: {uri}"]
