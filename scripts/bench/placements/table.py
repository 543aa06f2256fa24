"""The table that the runs are written to, one row each, and read back from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.bench.placements.plan import STEPS, Cell, Measured

# Steps after which a row tells the loss, beside the last: powers of two, as every run's curve.
CURVE_STEPS = tuple(2**i for i in range(2, 20) if 2**i < STEPS)


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run. Losses in nats per token; `gpu_seconds`: CPU seconds of the process.

    `status`, `fall_if_doubled_nats`: the certificate of convergence, and how much further it
    expects the loss to fall with twice the steps. `curve`: losses after CURVE_STEPS.
    """

    placement: str
    adapter_params: int
    rank: int
    length: int
    steps: int
    sequence: int
    seed: int
    learning_rate: float
    base_loss_nats: float
    final_loss_nats: float
    token_recall: float
    stubborn_tokens: int
    gpu_seconds: float
    status: str
    fall_if_doubled_nats: float
    grad_norm: float
    curve: tuple[float, ...]
    threads: int
    finished: str

    @property
    def delta_loss(self) -> float:
        """Loss reduction, nats per token."""
        return self.base_loss_nats - self.final_loss_nats

    def delta_at(self, step: int) -> float:
        """Return the loss reduction after one of CURVE_STEPS, or the last step; nats per token."""
        if step == self.steps:
            return self.delta_loss
        return self.base_loss_nats - self.curve[CURVE_STEPS.index(step)]

    @property
    def bits_a_parameter(self) -> float:
        """Bits that the adapter holds of its text, over its parameters."""
        return self.delta_loss * self.length / math.log(2.0) / self.adapter_params

    @property
    def cell(self) -> Cell:
        """Return where it was measured, but for the placement."""
        return Cell(self.rank, self.length, self.steps, self.sequence)

    @property
    def measured(self) -> Measured:
        """Return what the plan needs to know of it."""
        return Measured(self.placement, self.cell, self.learning_rate, self.final_loss_nats)


_CURVE = tuple(f"loss_at_{step}" for step in CURVE_STEPS)
_PLAIN = tuple(name for name in Row.__dataclass_fields__ if name != "curve")
COLUMNS = (*_PLAIN[:9], "final_loss_nats", "delta_loss_nats", *_PLAIN[10:], *_CURVE)
_INTS = {
    *("adapter_params", "rank", "length", "steps", "sequence", "seed"),
    *("stubborn_tokens", "threads"),
}
_TEXTS = {"placement", "status", "finished"}


def read_rows(file: Path) -> list[Row]:
    """Return a table's rows in its order; none where there is no file yet."""
    return [_parsed(cells) for cells in csv.DictReader(_lines(file, notes=False))]


def read_notes(file: Path) -> list[str]:
    """Return a table's lines about where it was measured."""
    return [line.removeprefix("# ") for line in _lines(file, notes=True)]


def append_rows(file: Path, rows: Iterable[Row], notes: Sequence[str]) -> None:
    """Append rows to a table, new or not, below those notes that it does not have yet."""
    known = read_notes(file)
    is_new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="") as out:
        out.writelines(f"# {note}\n" for note in notes if note not in known)
        table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if is_new:
            table.writeheader()
        table.writerows(_written(row) for row in rows)


def write_rows(file: Path, rows: Iterable[Row], notes: Sequence[str]) -> None:
    """Write a table anew."""
    file.unlink(missing_ok=True)
    append_rows(file, rows, notes)


def _lines(file: Path, notes: bool) -> list[str]:
    """Return a file's lines that are notes, or the others; none where there is no file."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line.startswith("#") == notes]


def _written(row: Row) -> dict[str, Any]:
    cells = asdict(row)
    curve = cells.pop("curve")
    cells["delta_loss_nats"] = row.delta_loss
    cells |= dict(zip(_CURVE, curve, strict=True))
    return {name: f"{x:.7g}" if isinstance(x, float) else x for name, x in cells.items()}


def _parsed(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for name in _PLAIN:
        kind = str if name in _TEXTS else int if name in _INTS else float
        values[name] = kind(cells[name])
    return Row(**values, curve=tuple(float(cells[name]) for name in _CURVE))
