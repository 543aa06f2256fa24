"""The law of a report in plain words and as a formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmlray.law import CAPPED, FitStatus, LawSummary
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.tables import number, percent

DIGITS = 3
_SYMBOLS = {
    "coef": "C",
    "rank_exponent": "α",
    "len_exponent": "β",
    "offset": "b",
    "budget_exponent": "γ",
    "sharpness": "n",
    "rank_drop": "d",
    "break_rank": "r_b",
}


@dataclass(frozen=True)
class Parameter:
    """Parameter of the formula with its 90% interval, formatted as text."""

    symbol: str
    name: str
    value: str
    low: str
    high: str


@dataclass(frozen=True)
class Formula:
    """Chosen form with its numbers put in; `spoken` is the same as one line of text. `ranks_of`:
    the placement whose ranks r counts, where the law has several."""

    form: str
    values: dict[str, str]
    offset_sign: str
    fits_budget: bool
    spoken: str
    ranks_of: str | None = None


@dataclass(frozen=True)
class Headline:
    """The law in words and as a formula."""

    sentences: tuple[str, ...]
    formula: Formula
    parameters: tuple[Parameter, ...]
    status: str
    message: str


def headline(result: SearchResult) -> Headline | None:
    """Return the law, its errors and its points, in words; None without a law."""
    law = result.law
    if law is None:
        return None
    return Headline(
        sentences=(
            law.headline,
            *_seen_errors(law),
            *_effects(law),
            f"It rests on {len(result.law_observations)} observations.",
        ),
        formula=_formula(law, _reference(result)),
        parameters=tuple(
            Parameter(
                _SYMBOLS.get(name, name),
                name,
                number(float(getattr(law.fit.law, name)), DIGITS),
                number(low, DIGITS),
                number(high, DIGITS),
            )
            for name, (low, high) in law.intervals.items()
        ),
        status=str(law.fit.status),
        message=law.fit.message,
    )


def _seen_errors(law: LawSummary) -> tuple[str, ...]:
    """Describe the errors at ranks and lengths that were measured.

    Empty while the law is underdetermined or has no held-out error.
    """
    if law.fit.status is FitStatus.UNDERDETERMINED or law.heldout_mape is None:
        return ()
    words = f"Between its points it was off by {percent(law.heldout_mape)} on average"
    if law.sequence_mape is not None:
        words += f", and by {percent(law.sequence_mape)} on a text that it had not seen"
    return (words + ".",)


def _effects(law: LawSummary) -> tuple[str, ...]:
    fitted = law.fit.law
    alpha, beta = fitted.rank_exponent, fitted.len_exponent
    by_rank = [2**x for x in (alpha, *law.intervals["rank_exponent"])]
    by_len = [2**-x for x in (beta, *reversed(law.intervals["len_exponent"]))]
    words = (
        "In the middle of the points, doubling the rank multiplies the loss reduction by"
        f" {by_rank[0]:.2f}"
        f" (90% interval {by_rank[1]:.2f} to {by_rank[2]:.2f}); doubling the text's length"
        f" multiplies it by {by_len[0]:.2f} ({by_len[1]:.2f} to {by_len[2]:.2f}), up to the"
        " offset b. Away from there the exponents drift, which curves and intervals hold and the"
        " formula does not."
    )
    if fitted.form in CAPPED:
        base = law.unseen.data.base_loss
        low, high = (number(float(edge(base)), DIGITS) for edge in (np.nanmin, np.nanmax))
        of = f"of {low}" if low == high else f"of its text, {low} to {high}"
        words += (
            f" Near the ceiling it gains less: no reduction can exceed the base loss {of} nats per"
            " token."
        )
    return (words,)


def _reference(result: SearchResult) -> str | None:
    """Return the placement whose ranks the law counts, of a search over several."""
    if not result.placements or result.law is None:
        return None
    data = result.law.unseen.data
    return data.placements[0].name if data.several_placements else next(iter(result.fitted_places))


def _formula(law: LawSummary, reference: str | None) -> Formula:
    fitted = law.fit.law
    stored = fitted.to_json()
    names = ["coef", "rank_exponent", "len_exponent", "budget_exponent", "ref_steps"]
    names += ["sharpness", "base_loss", "rank_drop", "break_rank"]
    values = {name: number(float(stored[name]), DIGITS) for name in names if name in stored}
    values["offset"] = number(abs(float(stored["offset"])), DIGITS)
    sign = "−" if stored["offset"] < 0 else "+"
    fits_budget = bool(stored["fits_budget"])
    steps = f" · (t / {values['ref_steps']})^{values['budget_exponent']}" if fits_budget else ""
    bend = ""
    if fitted.form == "broken":
        bend = f" · (1 + (r / {values['break_rank']})^4)^(−{values['rank_drop']}/4)"
    power = (
        f"{values['coef']} · r^{values['rank_exponent']}{bend} · l^−{values['len_exponent']}{steps}"
        f" {sign} {values['offset']}"
    )
    spoken = f"delta_loss = {power}"
    if fitted.form == "exponential_ceiling":
        base = values["base_loss"]
        spoken = f"delta_loss = {base} (1 − e^(−z / {base})) with z = {power}"
    if fitted.form == "ceiling":
        base, n = values["base_loss"], values["sharpness"]
        spoken = f"delta_loss = z / (1 + (z / {base})^{n})^(1/{n}) with z = {power}"
    if reference is not None:
        spoken += f", r in ranks of {reference} that the adapter's parameters are worth"
    return Formula(fitted.form, values, sign, fits_budget, spoken, reference)
