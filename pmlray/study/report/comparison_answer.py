"""First screen of a comparison's page: which method recalls more, how sure, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence

from pmlray.study.comparison.results import MethodComparison, MethodResult
from pmlray.study.findings.differences import LEVEL, Difference
from pmlray.study.report.figures.memft import SHORT_METHOD
from pmlray.study.report.tables import number
from pmlray.types import DesignPoint

# Most points that have a sentence of their own.
MOST_POINTS = 6


def comparison_parts(comparison: MethodComparison) -> tuple[tuple[str, str], ...]:
    """Return which method recalls more and how sure that is, as (what it is about, in words)."""
    at, gains = _by_point(comparison), _gains(comparison)
    if not gains:
        nothing = "No answer yet: no method has been run beside plain fine-tuning (SFT)."
        return (("Recall", nothing),)
    said = [_on_point(point, at[point], found) for point, found in gains.items()]
    if (left := len(said) - MOST_POINTS) > 0:
        said[MOST_POINTS:] = [f"{left} more points are in the table."]
    return (
        ("Recall", _in_short([pair for found in gains.values() for pair in found], len(gains))),
        ("By point", " ".join(said)),
        (
            "How sure",
            "Differences are paired by text and seed, averaged over seeds; intervals are Student's"
            " 95% intervals over texts. More or less is said where the difference is clear at 5 %"
            " after Holm's correction for all differences here. Every method was given the same"
            " search for its learning rate, on other texts.",
        ),
    )


def comparison_costs(comparison: MethodComparison) -> tuple[tuple[str, str], ...]:
    """Return what the methods cost and what to do next, as (what it is about, in words)."""
    gains = _gains(comparison)
    if not gains:
        return (("Next", "Give the comparison's command again: it goes on where it is."),)
    at = _by_point(comparison)
    is_open = any(_clear(r, d) is None for found in gains.values() for r, d in found)
    return (
        ("Cost", " ".join(_on_cost(point, at[point]) for point in [*gains][:MOST_POINTS])),
        (
            "Next",
            "More texts settle what is open: name more sequences in the comparison's file and give"
            " its command again, which keeps what is measured."
            if is_open
            else "Every difference is clear.",
        ),
    )


def _by_point(comparison: MethodComparison) -> dict[DesignPoint, list[MethodResult]]:
    at: dict[DesignPoint, list[MethodResult]] = {}
    for result in comparison.results:
        at.setdefault(result.point, []).append(result)
    return at


def _gains(
    comparison: MethodComparison,
) -> dict[DesignPoint, list[tuple[MethodResult, Difference]]]:
    """Return the methods with their differences from SFT in exact recall, by point."""
    found: dict[DesignPoint, list[tuple[MethodResult, Difference]]] = {}
    for result in comparison.results:
        if (difference := result.differences.get("exact_recall")) is not None:
            found.setdefault(result.point, []).append((result, difference))
    return found


def _clear(result: MethodResult, found: Difference) -> bool | None:
    """Return whether a method recalls more than SFT; None where that is open, among as many
    differences as the comparison has."""
    if result.holm_p is None or result.holm_p > 1 - LEVEL:
        return None
    return found.mean > 0


def _in_short(gains: Sequence[tuple[MethodResult, Difference]], n_points: int) -> str:
    """Return at how many points each method recalls more, and less, than SFT."""
    at = f"of {n_points} points" if n_points > 1 else "point"
    parts: list[str] = []
    for method in dict.fromkeys(r.method for r, _ in gains):
        found = [_clear(r, d) for r, d in gains if r.method == method]
        more, less = found.count(True), found.count(False)
        told = [f"{n} {at} {word}" for n, word in ((more, "more"), (less, "less")) if n]
        parts.append(f"{SHORT_METHOD[method]} at {' and at '.join(told) or 'none clearly more'}")
    return f"Beside plain fine-tuning (SFT), these recall whole: {'; '.join(parts)}."


def _on_point(
    point: DesignPoint,
    results: Sequence[MethodResult],
    gains: Sequence[tuple[MethodResult, Difference]],
) -> str:
    plain = next(r.means["exact_recall"] for r in results if r.method == "sft")
    words = f"{_at(point)}, SFT recalls {_share(plain)} whole"
    better = [(r, d) for r, d in gains if _clear(r, d)]
    worse = [r for r, d in gains if _clear(r, d) is False]
    left = [r for r, d in gains if _clear(r, d) is None]
    said: list[str] = []
    if better:
        best, found = max(better, key=lambda pair: pair[1].mean)
        said.append(
            f"{SHORT_METHOD[best.method]} recalls most, {_share(best.means['exact_recall'])}"
            f" ({_points(found.mean)} points, {_points(found.low)} to {_points(found.high)}, over"
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
    under = "" if point.schedule is None else f" under the schedule {point.schedule}"
    where = f"At rank {point.lora_rank}, {point.seq_len:,} tokens and {point.train_steps:,} steps"
    return where + under


def _names(results: Sequence[MethodResult]) -> str:
    return " or ".join(SHORT_METHOD[r.method] for r in results)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _points(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:+.0f}".replace("-", "−")
