"""Laws of several placements, compared by their errors at runs that they did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from pmlray.errors import DataError
from pmlray.law.data import LawData
from pmlray.law.fitting.averaging import average_laws
from pmlray.law.fitting.fit import FitOptions
from pmlray.law.fitting.site_effects import Worth
from pmlray.law.forms.protocol import Form
from pmlray.law.validation.unseen import UnseenError, heldout_errors, unseen_error

WORTHS: tuple[Worth, ...] = ("parameters", "one_factor", "sites", "pooled")


@dataclass(frozen=True, slots=True)
class PlacementLawErrors:
    """Errors of one law of several placements.

    `worth`: what tells them apart, as in `FitOptions`. `new_placement`: at placements left out one
    at a time, told from the others; `new_cell`: at cells of a placement, a rank, a length and steps
    left out one at a time; None where too few points are left. `weight`: of this law beside the
    others by their evidence.
    """

    worth: Worth
    new_placement: UnseenError | None
    new_cell: UnseenError | None
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


def compare_placement_laws(
    data: LawData, forms: Sequence[Form] | None = None, options: FitOptions | None = None
) -> tuple[PlacementLawErrors, ...]:
    """Compare laws in parameters alone, with one factor a placement, with factors by kind and depth
    of the sites, and with both.

    Args:
        data: points of several placements.
        forms: as in `fit_law`.
        options: of the fits; `worth` is not read.

    Raises:
        DataError: the points have one placement.
        FitError: no form can be fitted to these points.
    """
    if data.placement is None or not data.several_placements:
        raise DataError("laws of several placements need points of at least two")
    rows: list[tuple[Worth, UnseenError | None, UnseenError | None]] = []
    evidence: list[float] = []
    for worth in WORTHS:
        law = average_laws(data, forms, replace(options or FitOptions(), worth=worth))
        rows.append(
            (
                worth,
                unseen_error(heldout_errors(law, data, data.placement), data),
                unseen_error(heldout_errors(law, data, data.cells()), data),
            )
        )
        evidence.append(float(logsumexp([found.log_evidence for found in law.posteriors])))
    total = float(logsumexp(np.array(evidence)))
    return tuple(
        PlacementLawErrors(*row, math.exp(log - total))
        for row, log in zip(rows, evidence, strict=True)
    )
