"""Findings of a table of placements, for reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAWS = {
    "parameters": "parameters alone",
    "one_factor": "one factor a placement",
    "sites": "factors by module and depth",
    "pooled": "both",
}


def describe(found: Mapping[str, Any]) -> str:
    """Return findings as lines; brackets are 90 % intervals."""
    lines = [
        f"{found['runs']} runs, {found['at_tuned_rates']} of them at tuned rates,"
        f" {found['gpu_seconds']:.0f} CPU seconds",
        "bits a parameter (and share of the base's loss) by parameters and tokens:",
    ]
    for name, place in found["bits"].items():
        cells = "  ".join(
            f"{c['parameters']}, {c['length']}: {_mean(c['bits'])} ({c['share_of_base']:.2f})"
            for c in place["cells"]
        )
        lines.append(f"  {name:34s} {cells}")
    lines.append("worth beside the reference's: by bits, by the law; converged, nats left if not:")
    worths = {worth["name"]: worth for worth in found["worths"]}
    for name, place in found["bits"].items():
        lines.append(
            f"  {name:34s} {_mean(place['beside_reference'])}  {_interval(worths.get(name))}"
            f"  {place['converged']} of {place['runs']}, {place['fall_if_doubled']:.2f}"
        )
    lines.append("laws: error at new placements, at new cells, weight by evidence:")
    for law in found["laws"]:
        lines.append(
            f"  {LAWS[law['worth']]:30s} {_error(law['new_placement'])}  {_error(law['new_cell'])}"
            f"  {law['weight']:.3f}"
        )
    lines.append("order after some steps and at the end (Spearman); best then is best at the end:")
    for row in found["orders"]:
        share = row["first_is_first"]
        lines.append(f"  {row['step']:5d}  {_mean(row['correlation'])}  {share:.2f}")
    lines.append("the same, each placement at the best rate for so few steps:")
    for row in found["orders_tuned_early"]:
        lines.append(f"  {row['step']:5d}  {row['correlation']:.2f} of {row['of']} placements")
    lines.append("twice the steps: bits a parameter before and then; fall told, fell, nats:")
    for row in found["more_steps"]:
        lines.append(
            f"  {row['placement']:34s} {row['bits']:.2f}, {row['bits_twice']:.2f};"
            f" {row['fall_told']:.2f}, {row['fall']:.2f}"
        )
    lines.append("rates: final loss at each; what the default of 1e-2 leaves above the best:")
    for row in found["rates"]:
        losses = "  ".join(f"{rate:g}: {loss:.2f}" for rate, loss in row["final_loss"].items())
        above = row["default_above_best"]
        told = "" if above is None else f"; {above:.2f}"
        edge = " (edge)" if row["edge"] else ""
        place = f"{row['placement']}, {row['parameters']}"
        lines.append(f"  {place:40s} {losses}; best {row['best']:g}{edge}{told}")
    return "\n".join(lines)


def _mean(mean: Mapping[str, Any] | None) -> str:
    if mean is None:
        return "-"
    if mean["low"] is None:
        return f"{mean['value']:.2f} (one text)"
    return f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"


def _interval(worth: Mapping[str, Any] | None) -> str:
    if worth is None:
        return "-"
    return f"{worth['value']:.2f} [{worth['low']:.2f}, {worth['high']:.2f}]"


def _error(error: Mapping[str, Any] | None) -> str:
    if error is None:
        return "too few points"
    return f"{error['error']:.1%} [{error['low']:.1%}, {error['high']:.1%}]"
