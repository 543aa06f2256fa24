"""Tables of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pmlray.law import CAPPED, LawSummary
from pmlray.law.validation.convergence import Certificate
from pmlray.study.findings.memft_pairs import MemftPair
from pmlray.study.findings.result import SearchResult
from pmlray.types import DesignPoint

Cell = str | int | float | None
# Rows of a table that a page shows: a page of thousands would open slowly, and be read by nobody.
MOST_ROWS = 200
IN_JSON = "report.json beside this page"


@dataclass(frozen=True)
class Table:
    """Table with its caption; numbers are aligned to the right.

    `whole`: where all rows are, of a table that may have more than a page shows.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    whole: str = ""

    @cached_property
    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """Rows on the page: the first MOST_ROWS."""
        return self.rows[:MOST_ROWS]

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Flags of columns that show only numbers, or the dash for a missing one."""
        return tuple(
            bool(self.shown) and not any(isinstance(row[i], str) for row in self.shown)
            for i in range(len(self.columns))
        )

    @property
    def note(self) -> str:
        """How many of the rows are shown and where all of them are; empty where all are shown."""
        if len(self.shown) == len(self.rows):
            return ""
        where = f"; all of them are in {self.whole}" if self.whole else ""
        return f"The first {len(self.shown):,} of {len(self.rows):,} rows are shown{where}."


def _place_column(names: Sequence[str | None]) -> tuple[str, ...]:
    return ("placement",) if names else ()


def _place(point: DesignPoint, names: Sequence[str | None]) -> tuple[str | None, ...]:
    return (point.placement,) if names else ()


def number(value: float | None, digits: int = 4) -> str:
    """Format a number: significant digits alone, thousands set apart."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Format a fraction in per cent."""
    return "–" if value is None else f"{100 * value:.3g}%"


def cell(value: Cell) -> str:
    """Format a table's cell."""
    return value if isinstance(value, str) else number(value)


def pairs_table(pairs: Sequence[MemftPair], names: Sequence[str] = ()) -> Table:
    """Return every MemFT run beside its SFT run; names: of placements, where there are several."""
    rows: list[tuple[Cell, ...]] = []
    for i, pair in enumerate(pairs, start=1):
        p, sft, memft = pair.point, pair.sft, pair.memft
        rows.append(
            (
                *(i, pair.method, *_place(p, names), p.lora_rank, p.seq_len, p.train_steps),
                *(pair.sequence_id, pair.seed),
                *(sft.recall.exact, memft.recall.exact),
                *(sft.recall.prefix, memft.recall.prefix),
                *(sft.recall.token, memft.recall.token),
                *(sft.recall.n_stubborn, memft.recall.n_stubborn),
                *(sft.final_loss, memft.final_loss, sft.gpu_seconds, memft.gpu_seconds),
            )
        )
    columns = ("pair", "method", *_place_column(names), "lora_rank", "seq_len", "train_steps")
    columns += ("sequence", "seed")
    measures = ("exact", "prefix", "token", "stubborn", "final_loss", "gpu_seconds")
    both = tuple(f"{name} {who}" for name in measures for who in ("SFT", "MemFT"))
    return Table("Pairs of SFT and MemFT runs", columns + both, tuple(rows), IN_JSON)


def observations_table(result: SearchResult) -> Table:
    """Return every run in the order of the store."""
    names = result.placements
    columns = (
        *("round", "phase", "method", *_place_column(names)),
        *("lora_rank", "seq_len", "tokens", "train_steps"),
        *("sequence", "seed", "base_loss", "final_loss", "delta_loss"),
        *("token", "prefix", "answered", "exact", "stubborn", "decoded"),
        *("certificate", "expected_fall", "gpu_seconds", "run_key"),
    )
    decoded = {None: "not run", True: "matches", False: "differs"}
    rows = tuple(
        (
            *(o.round, o.phase, o.method, *_place(o.point, names)),
            *(o.point.lora_rank, o.point.seq_len),
            *(o.supervised_tokens, o.point.train_steps, o.sequence_id, o.seed),
            *(o.base_loss, o.final_loss, o.delta_loss),
            *(o.recall.token, o.recall.prefix, o.recall.right_answers, o.recall.exact),
            o.recall.n_stubborn,
            *(decoded[o.generated_match], *_certificate_cells(c), o.gpu_seconds, o.run_key),
        )
        for o, c in zip(result.observations, result.certificates, strict=True)
    )
    return Table("All observations", columns, rows, IN_JSON)


def _certificate_cells(certificate: Certificate | None) -> tuple[Cell, Cell]:
    if certificate is None:
        return "no curve", None
    slope = certificate.slope
    return certificate.status, slope if math.isfinite(slope) else None


def failures_table(result: SearchResult) -> Table:
    """Return every run that ended without a result."""
    names = result.spec.space.placements if len(result.spec.space.placements) > 1 else ()
    columns = ("round", *_place_column(names), "lora_rank", "seq_len", "train_steps")
    columns += ("gpu_seconds", "reason", "run_key")
    rows = tuple(
        (
            *(f.round, *_place(f.point, names)),
            *(f.point.lora_rank, f.point.seq_len, f.point.train_steps),
            *(f.gpu_seconds, f.reason, f.run_key),
        )
        for f in result.failures
    )
    return Table("Failed runs", columns, rows, IN_JSON)


def law_table(law: LawSummary) -> Table:
    """Return the law's parameters with their intervals; given parameters have none."""
    fitted = law.fit.law
    given = ["base_loss"] if fitted.form in CAPPED else []
    given += ["ref_steps"] if "budget_exponent" in law.intervals else []
    rows: list[tuple[Cell, ...]] = [
        (name, float(getattr(fitted, name)), low, high)
        for name, (low, high) in law.intervals.items()
    ]
    rows += [(f"{name} (given)", float(getattr(fitted, name)), None, None) for name in given]
    columns = ("parameter", "value", "90% low", "90% high")
    data = law.unseen.data
    ranks = f", in ranks of {data.placements[0].name}" if data.several_placements else ""
    return Table(f"Parameters of the {fitted.form} form{ranks}", columns, tuple(rows))


def fit_table(law: LawSummary) -> Table:
    """Return the numbers that qualify the fit."""
    fit = law.fit
    rows = (
        ("mean extrapolation error", percent(law.extrapolation_mape)),
        ("residual noise sigma, nats per token", number(fit.sigma)),
        ("R²", number(law.r2)),
        ("mean error at the fitted points", percent(law.mape)),
        ("mean held-out error", percent(law.heldout_mape)),
        ("mean error at a sequence left out", percent(law.sequence_mape)),
        ("largest relative half-width at the targets", percent(law.relative_interval)),
        ("points fitted", number(fit.n_obs)),
        ("points set aside", number(fit.n_censored)),
        ("status", f"{fit.status} {fit.message}".strip()),
    )
    return Table("Quality of the fit", ("measure", "value"), rows)


def targets_table(law: LawSummary) -> Table:
    """Return the law's predictions at the targets."""
    names = [t.placement.name if t.placement else t.point.placement for t in law.targets]
    named = any(name is not None for name in names)
    columns = ("lora_rank", "seq_len", "train_steps", "delta_loss", "90% low", "90% high")
    rows = tuple(
        (
            *((name,) if named else ()),
            *(t.point.lora_rank, t.point.seq_len, t.point.train_steps, t.delta_loss, t.low, t.high),
            *(t.run_low, t.run_high, t.point.seq_len * t.delta_loss / math.log(2.0)),
        )
        for name, t in zip(names, law.targets, strict=True)
    )
    columns = (*columns, "a run's 90% low", "a run's 90% high", "stored bits")
    columns = ("placement", *columns) if named else columns
    return Table("Predictions at the targets, nats per token", columns, rows)
