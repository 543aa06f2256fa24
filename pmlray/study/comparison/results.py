"""Results of a comparison: each method's means, and its paired differences from plain SFT.

Runs are paired by point, text and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from pmlray.config.compare_spec import CompareSpec
from pmlray.study.comparison.equal_recall import Cells, EqualRecall, equal_recall
from pmlray.study.comparison.tuning import tuned_rates
from pmlray.study.findings.about import about_runs
from pmlray.study.findings.differences import LEVEL, Difference, mean_over_texts
from pmlray.study.findings.recall_rule import recall_rule
from pmlray.types import DesignPoint, Method, Observation

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


@dataclass(frozen=True, slots=True)
class MethodResult:
    """Result of one method at one point: learning rate, number of runs, means and differences.

    The differences from SFT are keyed by the name of the figure; `sft` itself has none.
    """

    point: DesignPoint
    method: Method
    learning_rate: float
    n_runs: int
    means: Mapping[str, float]
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """Results of a comparison so far. `about`: its base, its task, where its adapters sit and when
    it was measured, in words."""

    compare_id: str
    results: tuple[MethodResult, ...]
    equal_recall: tuple[EqualRecall, ...]
    about: tuple[str, ...] = ()

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
                    "n_runs": r.n_runs,
                    "means": dict(r.means),
                    "differences": {name: asdict(d) for name, d in r.differences.items()},
                }
                for r in self.results
            ],
            "equal_recall": [asdict(e) for e in self.equal_recall],
        }


def compare_methods(spec: CompareSpec, observations: Sequence[Observation]) -> MethodComparison:
    """Compare what is measured so far; a point without both methods of a pair has no difference.

    DataError where exact recall does not count the same in all runs.
    """
    recall_rule(observations)
    costs = equal_recall(compared_cells(spec, observations))
    results, places = method_results(spec, observations), spec.search_spec().describe_places()
    about = about_runs(spec.model, spec.task, places, observations)
    return MethodComparison(spec.compare_id, results, costs, about)


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
    results = []
    for point in spec.design_points():
        plain = cells.get((point, "sft"), ())
        for method in spec.all_methods():
            if runs := cells.get((point, method), ()):
                differences = {} if method == "sft" else _differences(plain, runs)
                results.append(
                    MethodResult(
                        point, method, rates[point, method], len(runs), _means(runs), differences
                    )
                )
    return tuple(results)


def paired_difference(
    plain: Sequence[Observation],
    runs: Sequence[Observation],
    figure: Callable[[Observation], float | None],
) -> Difference | None:
    """Return the mean difference of a figure between runs of the same text and seed.

    None without a pair.
    """
    partner = {(o.sequence_id, o.seed): figure(o) for o in plain}
    of_text: dict[int, list[float]] = {}
    for o in runs:
        own, other = figure(o), partner.get((o.sequence_id, o.seed))
        if own is not None and other is not None:
            of_text.setdefault(o.sequence_id, []).append(own - other)
    return mean_over_texts(of_text)


def _differences(
    plain: Sequence[Observation], runs: Sequence[Observation]
) -> dict[str, Difference]:
    found = {name: paired_difference(plain, runs, figure) for name, figure in FIGURES.items()}
    return {name: difference for name, difference in found.items() if difference is not None}


def _means(runs: Sequence[Observation]) -> dict[str, float]:
    values = {name: [figure(o) for o in runs] for name, figure in FIGURES.items()}
    return {
        name: float(np.mean([x for x in own if x is not None]))
        for name, own in values.items()
        if any(x is not None for x in own)
    }
