"""Points of a law from a user's CSV: its columns, and the rows that count."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pmlray.errors import DataError
from pmlray.law.csv_placements import NAMELESS, with_placements
from pmlray.law.data import LawData, check_fall, check_point

NEEDED = ("rank", "length", "delta_loss_nats")
# Columns that identify a row's run; without them every row is its own cluster.
RUN = ("sequence", "seed")
OPTIONAL = (
    *("steps", "supervised_tokens", "base_loss_nats", "final_loss_nats"),
    *RUN,
    "adapter_params",
)
# Column of texts: where the adapter of a row sits.
PLACEMENT = "placement"
# Names of the same columns in stored observations, search files and the Python API.
ALIASES = {
    "lora_rank": "rank",
    "seq_len": "length",
    "train_steps": "steps",
    "delta_loss": "delta_loss_nats",
    "base_loss": "base_loss_nats",
    "final_loss": "final_loss_nats",
    "sequence_id": "sequence",
}
# Columns that `pmlray table` also writes; a law does not use them.
BESIDE = (
    *("token_recall", "prefix_recall", "exact_recall", "answer_recall"),
    "stubborn_tokens",
    *("gpu_seconds", "charged_steps", "control_delta_loss_nats"),
)
# Columns that must agree between repeated rows of one run.
MEASURED = ("delta_loss_nats", "base_loss_nats", "final_loss_nats", "supervised_tokens")
# Losses of a row may differ by their rounding, not by more than this share of the base loss.
CONTRADICTION = 0.01


@dataclass(frozen=True, slots=True)
class _Header:
    """Column names of the file, and the index of each column of numbers that is read, by pmlray's
    name for it, and of the placement where there is one."""

    where: str
    names: list[str]
    columns: Mapping[str, int]
    placement: int | None

    def cells(self, where: str, line: str) -> list[str]:
        """Return a row's cells; DataError where their number is not that of the named columns."""
        cells = _cells(where, line)
        named = max(place for place, name in enumerate(self.names) if name) + 1
        if len(cells) > len(self.names) or any(cells[named:]):
            raise DataError(
                f"{where}: {len(cells)} cells under the {named} columns of the header: write"
                " numbers with a decimal point and without thousands separators (2.1213, 1024),"
                " quote a text that holds a comma, and end no row with one"
            )
        if len(cells) < named:
            raise DataError(
                f"{where}: {len(cells)} cells under the {named} columns of the header: leave a cell"
                " empty that has no value, but keep its comma"
            )
        return cells

    def unused(self) -> str | None:
        """Return a note that names the columns that a law does not use; None without any."""
        known = {*NEEDED, *OPTIONAL, *BESIDE, *ALIASES, PLACEMENT}
        named = max(place for place, name in enumerate(self.names) if name)
        strange = [
            repr(name) if name else f"number {place + 1} (without a name)"
            for place, name in enumerate(self.names[: named + 1])
            if name not in known
        ]
        if not strange:
            return None
        return (
            f"{self.where}: not used: column {', '.join(strange)}; a law reads"
            f" {', '.join((*NEEDED, *OPTIONAL, PLACEMENT))}: rename a column that is one of these"
        )


@dataclass(slots=True)
class _Runs:
    """Rows read so far, by the run that they belong to."""

    seen: dict[tuple[object, ...], tuple[int, Mapping[str, float]]] = field(
        default_factory=dict[tuple[object, ...], tuple[int, Mapping[str, float]]]
    )
    n_repeats: int = 0
    example: str = ""

    def is_new(
        self, where: str, number: int, run: tuple[object, ...], row: Mapping[str, float]
    ) -> bool:
        """Return whether a row belongs to a run not seen so far; DataError where it contradicts an
        earlier row."""
        first, before = self.seen.setdefault(run, (number, row))
        if first == number:
            return True
        for name in MEASURED:
            now, then = row.get(name), before.get(name)
            if now != then:
                raise DataError(
                    f"{where}: the run of line {first} with another {name.removesuffix('_nats')},"
                    f" {_shown(now)} and {_shown(then)}{' nats' * name.endswith('_nats')}: keep"
                    " the one to be believed"
                )
        self.n_repeats += 1
        self.example = self.example or f"line {number} repeats line {first}"
        return False


def read_csv_points(source: Path, lines: Sequence[str], base_loss: float) -> LawData:
    """Read the points of a CSV's lines; base_loss: nats per token where a row has none, or NaN.

    Raises DataError naming the line and what to do about it.
    """
    rows: list[dict[str, float]] = []
    names: list[str] = []
    runs, header = _Runs(), None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        if header is None:
            header = _header(where, line)
            continue
        cells = header.cells(where, line)
        row = _numbers(where, line, header, cells)
        point = {"steps": 0.0, "base_loss_nats": base_loss} | row
        point["l"] = point.get("supervised_tokens", point["length"])
        delta, base = point["delta_loss_nats"], point["base_loss_nats"]
        check_point(where, point["rank"], point["l"], point["steps"], delta, base)
        _check_losses(where, point)
        name = _placement(where, header, cells)
        if runs.is_new(where, number, (name, *_run(header, cells, row)), row):
            rows.append(point)
            names.append(name)
    if header is None or not rows:
        raise DataError(f"{source}: no points; expected rows of {', '.join(NEEDED)}")
    n_known = sum(row["steps"] > 0 for row in rows)
    if 0 < n_known < len(rows):
        # Otherwise the law would silently be fitted without its budget term.
        raise DataError(
            f"{source}: steps is known in {n_known} of {len(rows)} rows; give it in all, or leave"
            " the column out"
        )
    data = _from_rows(rows, _notes(source, header, runs))
    params = [row.get("adapter_params", math.nan) for row in rows]
    return with_placements(source, data, names, params)


def _placement(where: str, header: _Header, cells: list[str]) -> str:
    if header.placement is None:
        return NAMELESS
    if not (name := cells[header.placement]):
        raise DataError(f"{where}: no placement: name where the adapter of every row sits")
    return name


def _run(header: _Header, cells: list[str], row: Mapping[str, float]) -> tuple[object, ...]:
    """Return the identity of a row's run; row: the cells of the file itself.

    Without a sequence and a seed, only rows that agree in every cell are one run: replicates may
    share their rank, length and steps.
    """
    if set(RUN) <= set(row):
        return (row["rank"], row["length"], row.get("steps", 0.0), *(row[name] for name in RUN))
    read = set(header.columns.values())
    # Columns without a name are skipped: pandas writes its row numbers there.
    beside = [
        (name, cell)
        for place, (name, cell) in enumerate(zip(header.names, cells, strict=False))
        if name and cell and place not in read
    ]
    return (*sorted(row.items()), *beside)


def _header(where: str, line: str) -> _Header:
    names = _cells(where, line)
    columns: dict[str, int] = {}
    for place, name in enumerate(names):
        known = ALIASES.get(name, name)
        if known not in (*NEEDED, *OPTIONAL, *BESIDE, PLACEMENT):
            continue
        if known in columns:
            first = columns[known]
            raise DataError(
                f"{where}: columns {first + 1} ({names[first]}) and {place + 1} ({name}) are both"
                f" the {known}: take out the one that is not to be read, or give it another name"
            )
        columns[known] = place
    if "supervised_tokens" in columns:
        columns.setdefault("length", columns["supervised_tokens"])
    if "adapter_params" in columns:
        columns.setdefault("rank", columns["adapter_params"])
    if missing := [name for name in NEEDED if name not in columns]:
        apart = next((mark for mark in ";\t" if mark in line), None)
        raise DataError(
            f"{where}: no column {', '.join(missing)}; expected a header with {', '.join(NEEDED)}"
            + (f", separated by commas and not by {apart!r}" if apart else "")
        )
    numbers = {n: place for n, place in columns.items() if n not in (*BESIDE, PLACEMENT)}
    return _Header(where, names, numbers, columns.get(PLACEMENT))


def _cells(where: str, line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise DataError(f"{where}: no line of a CSV ({error})") from error


def _numbers(where: str, line: str, header: _Header, cells: list[str]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, place in header.columns.items():
        cell = cells[place] if place < len(cells) else ""
        if not cell and name not in NEEDED:
            continue
        try:
            row[name] = float(cell)
        except ValueError:
            raise DataError(
                f"{where}: {line.strip()!r}; expected numbers for {', '.join(NEEDED)}, and"
                f" {header.names[place]} is {cell!r}: write it with a decimal point, and without"
                " units or thousands separators"
            ) from None
        if name not in NEEDED and not math.isfinite(row[name]):
            raise DataError(
                f"{where}: {header.names[place]} is {row[name]}, expected a finite number; leave"
                " out a run that diverged, and the cell empty where the number is not known"
            )
    return row


def _check_losses(where: str, row: Mapping[str, float]) -> None:
    """Raise DataError where the three losses of a row contradict each other beyond rounding."""
    base, delta = row["base_loss_nats"], row["delta_loss_nats"]
    final = row.get("final_loss_nats", math.nan)
    check_fall(where, delta, base, final)
    if abs(base - delta - final) > CONTRADICTION * base:
        raise DataError(
            f"{where}: base_loss {base:g} less delta_loss {delta:g} is not final_loss {final:g}"
            " nats: mend the row"
        )


def _notes(source: Path, header: _Header, runs: _Runs) -> tuple[str, ...]:
    notes = [note] if (note := header.unused()) else []
    if header.columns["rank"] == header.columns.get("adapter_params"):
        notes.append(f"{source}: no column rank: ranks in what follows are adapter_params")
    if n := runs.n_repeats:
        notes.append(
            f"{source}: {n} of {n + len(runs.seen)} rows are repeats ({runs.example}) and count"
            " once, as a repeat is no new evidence: give a run of its own its own sequence or seed"
        )
    return tuple(notes)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"


def _from_rows(rows: list[dict[str, float]], notes: tuple[str, ...]) -> LawData:
    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=float)

    base, delta = column("base_loss_nats"), column("delta_loss_nats")
    measured = np.array([row.get("final_loss_nats", math.nan) for row in rows])
    runs = [
        tuple(row.get(name, 0.0) for name in RUN) if set(RUN) & set(row) else (i,)
        for i, row in enumerate(rows)
    ]
    ids = {run: i for i, run in enumerate(dict.fromkeys(runs))}
    return LawData(
        lora_rank=column("rank"),
        seq_len=column("l"),
        train_steps=column("steps"),
        delta_loss=delta,
        base_loss=base,
        final_loss=np.where(np.isnan(measured), base - delta, measured),
        cluster=np.array([ids[run] for run in runs], dtype=np.int64),
        notes=notes,
    )
