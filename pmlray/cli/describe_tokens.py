"""Findings of `pmlray tokens` in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmlray.study.findings.stubborn_tokens import LEVEL, NEARLY_ALL

SHOWN_AT_MOST = 20


def describe_tokens(found: Mapping[str, Any]) -> str:
    """Describe the report on tokens, from its JSON object."""
    verdicts, run = found["verdicts"], found["run"]
    lines = [
        f"{found['search_id']}: {found['n_tokens']} supervised tokens in {found['n_runs']} runs"
        f" ({found['n_families']} that differ in more than their budget), adapters at layer"
        f" {found['layer']}",
        f"pathology {verdicts['pathology']}, hard {verdicts['hard']}, capacity"
        f" {verdicts['capacity']} (family-wise error {LEVEL:g})",
    ]
    if found["n_untested"]:
        lines.append(
            f"{found['n_untested']} tokens lie in no run that recalls {100 * NEARLY_ALL:g} % of its"
            " tokens: a pathology could not be told from capacity there"
        )
    if run is not None:
        lines.append(_run_line("run", run))
    if found["moved"] is not None:
        lines += _moved_lines(found)
    shown = found["tokens"][:SHOWN_AT_MOST]
    lines += _table([_row(token) for token in shown])
    if left := len(found["tokens"]) - len(shown):
        lines.append(f"and {left} more; --json has them all")
    ids = [t for t in found["ids"] if t["p_adjusted"] <= LEVEL]
    lines += [
        f"token id {t['token_id']} fails {t['failed']} of {t['tokens']} times at its {t['places']}"
        f" places, {t['expected']:.0f} expected (adjusted p {t['p_adjusted']:.2g})"
        for t in ids
    ]
    if found["note"]:
        lines.append(found["note"])
    return "\n".join(lines)


def _run_line(name: str, run: Mapping[str, Any]) -> str:
    point = run["point"]
    return (
        f"{name} {run['run_key']} at layer {run['layer']}: lora_rank={point['lora_rank']}"
        f" seq_len={point['seq_len']} train_steps={point['train_steps']}, final_loss"
        f" {run['final_loss']:.4g} after {run['steps_taken']} steps; {run['n_failed']} of"
        f" {run['n_tokens']} tokens fail, {run['n_wrong']} of them with a wrong argmax"
    )


def _moved_lines(found: Mapping[str, Any]) -> list[str]:
    moved, tokens = found["moved"], found["tokens"]
    share = 1.0 - moved["n_failed"] / moved["n_tokens"]
    lines = [_run_line("moved", moved)]
    groups = {"stubborn": [t for t in tokens if t["verdict"] != "capacity"], "failing": tokens}
    lines += [
        f"  layer {moved['layer']} cures {sum(t['cured'] for t in group)} of {len(group)}"
        f" {name} tokens; it recalls {100 * share:.3g} % of all"
        for name, group in groups.items()
        if group
    ]
    return [*lines, f"  kept in {moved['store']}, a store of its own"]


def _row(t: Mapping[str, Any]) -> dict[str, str]:
    row = {"sequence": str(t["sequence_id"]), "position": str(t["position"])}
    if (token := t["token"]) is not None:
        row |= {"id": str(token["token_id"]), "text": repr(token["text"])}
    row |= {
        "failed": f"{t['failed']}/{t['runs']}",
        "wrong": str(t["wrong"]),
        "apart": f"{t['families_failed']}/{t['families']}",
        "expected": f"{t['expected']:.1f}",
        "adjusted p": f"{t['p_adjusted']:.2g}",
        "recalling": f"{t['recalling_failed']}/{t['recalling']}",
        "verdict": t["verdict"],
    }
    if token is not None:
        row |= {
            "base p": f"{token['base_p']:.2g}",
            "norm": f"{token['norm']:.4g}",
            "to median": f"{token['norm_ratio']:.2f}",
        }
    row |= {
        name[:-2] + " p": f"{t[name]:.3f}" for name in ("run_p", "moved_p") if t[name] is not None
    }
    return row


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["no token fails"]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    lines += ["  ".join(row[name].rjust(width) for name, width in widths.items()) for row in rows]
    return [
        *lines,
        "failed: runs that leave it at p <= 0.5; apart: the same over runs that differ in more than"
        " their budget, with the number that capacity lets one expect; recalling: of these, the"
        f" runs that recall {100 * NEARLY_ALL:g} % of their tokens; norm: of the residual stream"
        " behind the adapter's layer where the token is predicted",
    ]
