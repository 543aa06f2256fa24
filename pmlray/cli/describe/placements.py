"""What placements are worth and which stores for least, in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEADS = {
    "placements": "a parameter is worth, beside one of {reference}:",
    "kinds": "by kind of module, halfway through the base, as placements of its kind have it:",
    "depths": "by layer, beside the same module in the middle:",
}
# What a choice is by, in words, and the unit of its costs.
_LEAST = {
    "parameters": ("fewest parameters", "parameters"),
    "gpu_seconds": ("fewest gpu_seconds", "gpu_seconds"),
    "prose": ("least harm to prose", "nats per token of prose"),
}


def worth_lines(worth: Mapping[str, Any]) -> list[str]:
    """Describe what a parameter is worth by placement, kind and depth, from its JSON object."""
    lines: list[str] = []
    wide = max((len(row["name"]) for rows in worth.values() for row in rows), default=0)
    for name, rows in worth.items():
        lines.append("  " + _HEADS[name].format(reference=rows[0]["name"]))
        for place, row in enumerate(rows):
            shown = f"{row['value']:.3g}   90 % interval [{row['low']:.3g}, {row['high']:.3g}]"
            points = "" if row["n_points"] is None else f", {row['n_points']} of its points"
            if name == "placements" and place == 0:
                shown = "1 by definition"
            lines.append(f"    {row['name']:{wide}} {shown}{points}")
    return lines


def choice_lines(choice: Mapping[str, Any]) -> list[str]:
    """Describe which placement costs least, from its JSON object."""
    steps = f" train_steps={choice['train_steps']}" if choice["train_steps"] else ""
    least, unit = _LEAST[choice["by"]]
    first, second, *_ = (need["placement"] for need in choice["placements"])
    sure = f"{100 * choice['p_first']:.0f} %"
    order = (
        f"{first}, then {second} ({sure} sure; of the whole order {100 * choice['p_order']:.0f} %)"
    )
    if choice["far"]:
        order = (
            f"{first}, then {second}, by the trend of the law alone ({sure} of its samples), which"
            " no run has tested so far from the points"
        )
    if choice["placements"][0]["cost"]["value"] is None:
        order = "no placement is likely to have a rank that is enough"
    lines = [
        f"  {least} for delta_loss {choice['delta_loss']:.4g} at"
        f" seq_len={choice['seq_len']}{steps}: {order}"
    ]
    wide = max(len(need["placement"]) for need in choice["placements"])
    for need in choice["placements"]:
        rank, cost = need["lora_rank"], need["cost"]
        far = "; far beyond those measured" if need["far"] else ""
        lines.append(
            f"    {need['placement']:{wide}} rank {_range(rank)}, {unit} {_range(cost)};"
            f" {least.split()[0]} with {100 * need['p_best']:.0f} %{far}"
        )
    return lines


def _range(found: Mapping[str, float | None]) -> str:
    value, low, high = (
        "inf" if x is None else f"{x:.{6 if x >= 100 else 3}g}" for x in found.values()
    )
    return f"{value} [{low}, {high}]"
