"""Runs of a report by the placement of their adapters, and how figures tell placements apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pmlray.law import AveragedSamples, LawSummary, Placement, PlaceWorth
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.style import GREY, ChartRow
from pmlray.types import DesignPoint, Observation

# As many shapes as have no common divisor with the number of colours: the two together repeat only
# after 35 placements.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
# Most pixels of a label beside a figure, of which a phone leaves it two thirds.
LABEL_LIMIT = 110
# Widths in pixels of a phone's figure, of a legend's symbol with its gaps, and of a letter.
_PHONE, _SYMBOL, _LETTER = 330, 30, 6.6


@dataclass(frozen=True)
class PlacedRuns:
    """SFT runs measured for the law at one placement, with its ranks, targets and law: all that a
    search has where it has one place.

    `name`: of the placement, None where a search has one place. `place`: of the law, None where its
    ranks are this placement's own. `law` is None where no run at the placement was fitted.
    """

    name: str | None
    runs: tuple[Observation, ...]
    ranks: tuple[int, ...]
    targets: tuple[DesignPoint, ...]
    law: LawSummary | None
    place: Placement | None

    @property
    def samples(self) -> AveragedSamples | None:
        """Samples of the law in ranks of the placement."""
        if self.law is None:
            return None
        samples = self.law.average_samples
        return samples if self.place is None else samples.at(self.place)

    def predict(self, lora_rank: ArrayLike, seq_len: ArrayLike, steps: int) -> NDArray[np.float64]:
        """Return the mean delta_loss, nats per token, in ranks of the placement, of a law that is
        there."""
        assert self.law is not None
        return self.law.average.predict(lora_rank, seq_len, steps, self.place)

    def key(self, stem: str) -> str:
        """Return the key of a figure of these runs."""
        return stem if self.name is None else f"{stem}-{self.name}"

    def title(self, text: str) -> str:
        """Return the title or description of a figure of these runs."""
        return text if self.name is None else f"{self.name}: {text[0].lower()}{text[1:]}"


def by_placement(result: SearchResult) -> tuple[PlacedRuns, ...]:
    """Return the SFT runs of the law at each placement that has any, in the order of the spec."""
    runs = tuple(o for o in result.law_observations if o.method == "sft")
    targets, space = result.spec.target_points(), result.spec.space
    if not result.placements:
        ranks = space.ranks_of(space.placements[0])
        return (PlacedRuns(None, runs, ranks, targets, result.law, None),) if runs else ()
    places = result.fitted_places
    found = (
        PlacedRuns(
            name,
            tuple(o for o in runs if o.point.placement == name),
            space.ranks_of(name),
            tuple(point for point in targets if point.placement == name),
            result.law if name in places else None,
            places.get(name),
        )
        for name in result.placements
    )
    return tuple(placed for placed in found if placed.runs)


def placed_tips(result: SearchResult) -> tuple[str, ...]:
    """Return the names of a run's fields that only runs at several placements show."""
    return ("placement",) if result.placements else ()


def effective_params(o: Observation, place: Placement, worths: Mapping[str, PlaceWorth]) -> float:
    """Return the parameters of the reference that a run's adapter is worth: w P."""
    return float(f"{worths[place.name].value * place.params_per_rank * o.point.lora_rank:.6g}")


def effective_axis(values: Sequence[float]) -> alt.X:
    """Return a logarithmic axis of effective parameters over these."""
    scale = alt.Scale(type="log", domain=[min(values) / 1.2, max(values) * 1.2], nice=False)
    axis = alt.Axis(grid=False, tickCount=5, format="~s", title="effective parameters (log)")
    return alt.X("effective_params", type="quantitative", scale=scale, axis=axis)


def placement_colour(names: Sequence[str], *, legend: bool = True) -> alt.Color:
    """Return the colours of placements, always in this order."""
    return alt.Color(
        "placement",
        type="nominal",
        scale=alt.Scale(domain=list(names)),
        legend=placement_legend(names) if legend else None,
    )


def placement_shape(names: Sequence[str], *, legend: bool = True, alone: bool = False) -> alt.Shape:
    """Return the shapes of placements, which tell them apart without colours.

    alone: colours tell something else, so that the legend's symbols need one of their own.
    """
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    return alt.Shape(
        "placement",
        type="nominal",
        scale=alt.Scale(domain=list(names), range=shapes),
        legend=placement_legend(names, alone=alone) if legend else None,
    )


def placement_legend(names: Sequence[str], *, alone: bool = False) -> alt.Legend:
    """Return a legend with as many columns as a phone has room for."""
    widest = _SYMBOL + _LETTER * max(map(len, names))
    grey: dict[str, Any] = {"symbolFillColor": GREY, "symbolStrokeColor": GREY} if alone else {}
    return alt.Legend(columns=max(1, int(_PHONE // widest)), title="placement", **grey)


def placed_row(point: DesignPoint) -> ChartRow:
    """Return what a row says of a point's placement, with the label of its rank there."""
    return {"placement": point.placement, "at_rank": f"r{point.lora_rank} {point.placement}"}


def rank_rows(
    rows: Sequence[ChartRow], names: Sequence[str], scale: alt.Scale | None = None
) -> tuple[str, alt.Y]:
    """Return what rows of cells are, in words, and their axis: ranks, or those of each placement.

    rows: with the fields of `placed_row` where there are `names`; scale: of the axis.
    """
    shared: dict[str, Any] = {} if scale is None else {"scale": scale}
    if not names:
        return "lora_rank", alt.Y("lora_rank", type="ordinal", sort="descending", **shared)
    keys = {(names.index(r["placement"]), -r["lora_rank"]): r["at_rank"] for r in rows}
    order = [keys[key] for key in sorted(keys)]
    # What is cut off a long name is in the tooltip; the rank comes first and is never cut.
    axis = alt.Axis(labelLimit=LABEL_LIMIT)
    title = "lora_rank, placement"
    return title, alt.Y("at_rank", type="nominal", sort=order, title=title, axis=axis, **shared)
