"""Options of the law that a search fits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pmlray.config.spec_base import Part
from pmlray.law import FitOptions, Form


class LawOptions(Part):
    """Forms of the law that are fitted and averaged by their evidence, the treatment of points, and
    the intervals reported.

    A search knows its base loss, so the default forms are those that it bounds. The paper's `power`
    form does not bend before saturation: averaged in, it made replayed searches of real runs spend
    two to three times as much. `loss`: `gaussian`, or `huber`, which is robust to outliers.
    `saturated`: where a form has no ceiling, `filter` excludes points with final_loss <= ln 2 and
    `censor` takes them as lower bounds; where it has one, `censor` takes points at or below `floor`
    nats as lower bounds. `noise` is no longer used, since noise always follows the level of a run;
    the key is accepted so that earlier searches continue. `optimisation_limited`: `leave_out`
    excludes from the law runs whose loss twice the steps would lower by 0.2 nats per token or more,
    so that it describes what adapters can hold rather than what the steps allowed; the choice of
    the next run counts them in any case.
    """

    forms: tuple[Form, ...] = Field(default=("ceiling", "exponential_ceiling"), min_length=1)
    n_bootstrap: Annotated[int, Field(ge=20, le=100_000)] = 200
    loss: Literal["gaussian", "huber"] = "gaussian"
    saturated: Literal["filter", "censor"] = "filter"
    floor: Annotated[float, Field(gt=0)] = 0.02
    noise: Literal["equal", "by_value"] = "equal"
    optimisation_limited: Literal["keep", "leave_out"] = "keep"

    def fit_options(self) -> FitOptions:
        """Return the treatment of points in every fit of the search."""
        return FitOptions(self.loss, self.saturated, self.floor)
