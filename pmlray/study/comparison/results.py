"""Results of a comparison: each method's means, and its paired differences from plain SFT.

Runs are paired by point, text and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from pmlray.config.compare_spec import CompareSpec
from pmlray.study.comparison.equal_recall import Cells, EqualRecall, equal_recall
from pmlray.study.comparison.recall_levels import SecondsToRecall, seconds_to_recall
from pmlray.study.comparison.tuning import TriedRate, tried_rates, tuned_rates
from pmlray.study.findings.about import about_runs
from pmlray.study.findings.differences import LEVEL, Difference, mean_over_texts
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.study.run_names import short_point
from pmlray.types import DesignPoint, Method, Observation

Edge = Literal["lowest", "highest"]
# Figures of a run by which methods are compared; None where not measured.
FIGURES: Mapping[str, Callable[[Observation], float | None]] = MappingProxyType(
    {
        "exact_recall": lambda o: o.recall.exact,
        "answer_recall": lambda o: o.recall.answered,
        "prefix_recall": lambda o: o.recall.prefix,
        "token_recall": lambda o: o.recall.token,
        "stubborn_tokens": lambda o: float(o.recall.n_stubborn),
        "final_loss": lambda o: o.final_loss,
        "gpu_seconds": lambda o: o.gpu_seconds,
        "steps_taken": lambda o: o.charged_steps,
        "control_recall": lambda o: o.control_recall,
        "prose_delta_loss": lambda o: o.prose_delta_loss,
    }
)
# Those of them that are shares.
SHARES = frozenset(name for name in FIGURES if name.endswith("_recall"))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """Result of one method at one point: learning rate, number of runs, means and differences.

    The differences from SFT are keyed by the name of the figure; `sft` itself has none. edge: the
    rate is the lowest or the highest of those tried at the point that any method's runs ended at,
    so that one beyond it may be better; None where it is inside, or was not tuned. holm_p: p of the
    difference in exact recall, corrected by Holm for all such differences of the comparison.
    """

    point: DesignPoint
    method: Method
    learning_rate: float
    n_runs: int
    means: Mapping[str, float]
    differences: Mapping[str, Difference]
    edge: Edge | None = None
    holm_p: float | None = None


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """Results of a comparison so far; tried: what each rate recalled on the tuning texts. `about`:
    its base, its task, where its adapters sit and when it was measured, in words."""

    compare_id: str
    results: tuple[MethodResult, ...]
    equal_recall: tuple[EqualRecall, ...]
    about: tuple[str, ...] = ()
    tried: tuple[TriedRate, ...] = ()
    to_recall: tuple[SecondsToRecall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "compare_id": self.compare_id,
            "interval_level": LEVEL,
            "results": [
                {
                    **r.point.to_json(),
                    "method": r.method,
                    "learning_rate": r.learning_rate,
                    "edge": r.edge,
                    "n_runs": r.n_runs,
                    "means": dict(r.means),
                    "differences": {name: asdict(d) for name, d in r.differences.items()},
                    "holm_p": r.holm_p,
                }
                for r in self.results
            ],
            "equal_recall": [asdict(e) for e in self.equal_recall],
            "tried": [asdict(t) for t in self.tried],
            "to_recall": [asdict(t) for t in self.to_recall],
        }


def compare_methods(spec: CompareSpec, observations: Sequence[Observation]) -> MethodComparison:
    """Compare what is measured so far; a point without both methods of a pair has no difference.

    DataError where exact recall does not count the same in all runs.
    """
    recall_rule(observations)
    cells = compared_cells(spec, observations)
    results, places = method_results(spec, observations), spec.search_spec().describe_places()
    # A single rate is no choice.
    tried = tried_rates(spec, observations) if spec.n_tuning_runs else ()
    costs, levels = equal_recall(cells), seconds_to_recall(cells)
    about = about_runs(spec.model, spec.task, places, observations)
    return MethodComparison(spec.compare_id, results, costs, about, tried, levels)


def compared_cells(spec: CompareSpec, observations: Sequence[Observation]) -> Cells:
    """Return the compared runs of every point and method, at the method's tuned rate."""
    rates = tuned_rates(spec, observations)
    by_cell: dict[tuple[DesignPoint, Method], list[Observation]] = {}
    for o in observations:
        of_spec = o.sequence_id in spec.sequences and o.seed in spec.seeds
        if of_spec and o.learning_rate == rates.get((o.point, o.method)):
            by_cell.setdefault((o.point, o.method), []).append(o)
    return by_cell


def method_results(
    spec: CompareSpec, observations: Sequence[Observation]
) -> tuple[MethodResult, ...]:
    """Return the result of every method that has runs, at every point, in the order of the spec."""
    rates, cells = tuned_rates(spec, observations), compared_cells(spec, observations)
    tried = tried_rates(spec, observations)
    results = []
    for point in spec.design_points():
        ended = [t.learning_rate for t in tried if t.point == point]
        plain = cells.get((point, "sft"), ())
        for method in spec.all_methods():
            if runs := cells.get((point, method), ()):
                differences = {} if method == "sft" else _differences(plain, runs)
                rate = rates[point, method]
                edge = _edge(rate, ended) if spec.n_tuning_runs else None
                results.append(
                    MethodResult(point, method, rate, len(runs), _means(runs), differences, edge)
                )
    return _holm(results)


def _edge(rate: float, tried: Sequence[float]) -> Edge | None:
    if tried and rate == max(tried):
        return "highest"
    return "lowest" if tried and rate == min(tried) else None


def method_metrics(results: Sequence[MethodResult]) -> dict[str, float]:
    """Return each method's means as flat metrics, in whose order MemFT stands beside SFT.

    Example:
        `r2 l280 t400/exact_recall/memft_ot`
    """
    return {
        f"{short_point(r.point)}/{figure}/{r.method}": mean
        for r in results
        for figure, mean in r.means.items()
    }


def paired_difference(
    plain: Sequence[Observation],
    runs: Sequence[Observation],
    name: str,
) -> Difference | None:
    """Return the mean difference of one of FIGURES between runs of the same text and seed.

    None without a pair.
    """
    figure = FIGURES[name]
    partner = {(o.sequence_id, o.seed): figure(o) for o in plain}
    of_text: dict[int, list[float]] = {}
    for o in runs:
        own, other = figure(o), partner.get((o.sequence_id, o.seed))
        if own is not None and other is not None:
            of_text.setdefault(o.sequence_id, []).append(own - other)
    return mean_over_texts(of_text, shares=name in SHARES)


def _holm(results: Sequence[MethodResult]) -> tuple[MethodResult, ...]:
    """Return the results with Holm's corrected p of each difference in exact recall.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the one before it (S. Holm,
    Scandinavian Journal of Statistics 6, 1979).
    """
    known = {i: d.p_value for i, r in enumerate(results)
             if (d := r.differences.get("exact_recall")) is not None}  # fmt: skip
    ordered = sorted((p, i) for i, p in known.items() if p is not None)
    corrected: dict[int, float] = {}
    least = 0.0
    for k, (p, i) in enumerate(ordered):
        # A difference whose p is not known counts among those that were looked at.
        least = corrected[i] = max(least, min(1.0, p * (len(known) - k)))
    return tuple(replace(r, holm_p=corrected.get(i)) for i, r in enumerate(results))


def _differences(
    plain: Sequence[Observation], runs: Sequence[Observation]
) -> dict[str, Difference]:
    found = {name: paired_difference(plain, runs, name) for name in FIGURES}
    return {name: difference for name, difference in found.items() if difference is not None}


def _means(runs: Sequence[Observation]) -> dict[str, float]:
    values = {name: [figure(o) for o in runs] for name, figure in FIGURES.items()}
    return {
        name: float(np.mean([x for x in own if x is not None]))
        for name, own in values.items()
        if any(x is not None for x in own)
    }
