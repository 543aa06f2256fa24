"""First screen of a comparison's page: which method recalls more, how sure, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence

from pmlray.study.comparison.results import MethodComparison, MethodResult
from pmlray.study.findings.differences import Difference
from pmlray.study.report.figures.memft import SHORT_METHOD
from pmlray.study.report.tables import number
from pmlray.types import DesignPoint

# Most points that have a sentence of their own.
MOST_POINTS = 6


def comparison_parts(comparison: MethodComparison) -> tuple[tuple[str, str], ...]:
    """Return the answer of a comparison as (what it is about, in words)."""
    at: dict[DesignPoint, list[MethodResult]] = {}
    for result in comparison.results:
        at.setdefault(result.point, []).append(result)
    found = {point: _gains(results) for point, results in at.items()}
    known = {point: gains for point, gains in found.items() if gains}
    if not known:
        return (
            ("Recall", "No answer yet: no method has been run beside plain fine-tuning (SFT)."),
            ("Next", "Give the comparison's command again: it goes on where it is."),
        )
    shown = [*known][:MOST_POINTS]
    left = len(known) - len(shown)
    more = f" {left} more points are in the table." if left else ""
    open_ = any(_clear(d) is None for gains in known.values() for _, d in gains)
    return (
        ("Recall", " ".join(_on_point(point, at[point], known[point]) for point in shown) + more),
        (
            "How sure",
            "Differences are paired by text and seed, averaged over seeds; intervals are Student's"
            " 95% intervals over texts. Every method was given the same search for its learning"
            " rate, on other texts.",
        ),
        ("Cost", " ".join(_on_cost(point, at[point]) for point in shown)),
        (
            "Next",
            "More texts settle what is open: name more sequences in the comparison's file and give"
            " its command again, which keeps what is measured."
            if open_
            else "Every difference is clear. Which rank records of yours need: pmlray size.",
        ),
    )


def _gains(results: Sequence[MethodResult]) -> list[tuple[MethodResult, Difference]]:
    """Return the methods with their differences from SFT in exact recall."""
    return [(r, d) for r in results if (d := r.differences.get("exact_recall")) is not None]


def _clear(found: Difference) -> bool | None:
    """Return whether a method recalls more than SFT; None where that is open."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return None
    return found.mean > 0


def _on_point(
    point: DesignPoint,
    results: Sequence[MethodResult],
    gains: Sequence[tuple[MethodResult, Difference]],
) -> str:
    plain = next((r.means["exact_recall"] for r in results if r.method == "sft"), None)
    beside = "" if plain is None else f" {plain:.2f},"
    words = f"{_at(point)}, SFT recalls{beside} whole"
    better = [(r, d) for r, d in gains if _clear(d)]
    worse = [r for r, d in gains if _clear(d) is False]
    left = [r for r, d in gains if _clear(d) is None]
    said: list[str] = []
    if better:
        best, found = max(better, key=lambda pair: pair[1].mean)
        said.append(
            f"{SHORT_METHOD[best.method]} recalls most, {best.means['exact_recall']:.2f}"
            f" ({_signed(found.mean)} [{_signed(found.low)}, {_signed(found.high)}] over"
            f" {found.n} texts)"
        )
        others = [r for r, _ in better if r is not best]
        said += [f"{_names(others)} recalls more too"] if others else []
    said += [f"{_names(worse)} recalls less"] if worse else []
    said += [f"whether {_names(left)} recalls more or less is open"] if left else []
    return f"{words}; {'; '.join(said)}."


def _on_cost(point: DesignPoint, results: Sequence[MethodResult]) -> str:
    costs = ", ".join(
        f"{SHORT_METHOD[r.method]} {number(r.means['gpu_seconds'], 3)}"
        for r in results
        if "gpu_seconds" in r.means
    )
    return f"{_at(point)}, gpu_seconds a run: {costs}."


def _at(point: DesignPoint) -> str:
    return f"At rank {point.lora_rank}, {point.seq_len:,} tokens and {point.train_steps:,} steps"


def _names(results: Sequence[MethodResult]) -> str:
    return " or ".join(SHORT_METHOD[r.method] for r in results)


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f}".replace("-", "−")
