"""The forms of the memory law, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmlray.errors import DataError
from pmlray.law.forms.broken import BrokenLaw
from pmlray.law.forms.ceiling import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.forms.drift import Drift, drift_from_json
from pmlray.law.forms.power import PowerLaw
from pmlray.law.forms.protocol import Form, Law

FORMS: dict[Form, type[Law]] = {
    "power": PowerLaw,
    "ceiling": CeilingLaw,
    "exponential_ceiling": ExponentialCeilingLaw,
    "broken": BrokenLaw,
}
# These use the base loss: delta_loss cannot exceed it.
CAPPED: frozenset[Form] = frozenset({"ceiling", "exponential_ceiling"})


def blank_law(
    form: Form, base_loss: float, ref_steps: float, fits_budget: bool, drift: Drift | None = None
) -> Law:
    """Return a law of a form whose free parameters `with_params` is still to set."""
    budget = (0.0, ref_steps, fits_budget, drift)
    if form == "ceiling":
        return CeilingLaw(1.0, 1.0, 1.0, 0.0, 1.0, base_loss, *budget)
    if form == "exponential_ceiling":
        return ExponentialCeilingLaw(1.0, 1.0, 1.0, 0.0, base_loss, *budget)
    if form == "broken":
        return BrokenLaw(1.0, 1.0, 1.0, 0.0, 0.0, 1.0, *budget)
    return PowerLaw(1.0, 1.0, 1.0, 0.0, *budget)


def law_from_json(stored: Mapping[str, Any]) -> Law:
    """Rebuild a law from `to_json`'s form; DataError when the form or a field is not known."""
    values = {k: v for k, v in stored.items() if k != "form"}
    try:
        values["drift"] = drift_from_json(stored.get("drift"))
        return FORMS[stored["form"]](**values)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"not a stored law ({error!r}); expected a form of {', '.join(FORMS)} and its fields"
        ) from error
