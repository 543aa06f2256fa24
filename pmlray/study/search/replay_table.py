"""CSV table of exhaustive measurements, and replays of searches against it.

With a table, ways of choosing points can be compared on real runs without a GPU: a replayed search
takes the same path as a live one, and only its measurements are looked up.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmlray.design import charged_steps
from pmlray.errors import DataError
from pmlray.ports import ObservationStore
from pmlray.types import (
    DesignPoint,
    FailedRun,
    Family,
    Observation,
    Pack,
    PackResult,
    PackTimes,
    PlannedRun,
    Recall,
)
from pmlray.version import here_or_shipped

# `pmlray fit` reads `rank`, `length` and `delta_loss_nats` of any CSV.
COLUMNS = {
    "rank": int,
    "length": int,
    "steps": int,
    "sequence": int,
    "seed": int,
    "supervised_tokens": int,
    "base_loss_nats": float,
    "final_loss_nats": float,
    "delta_loss_nats": float,
    "token_recall": float,
    "prefix_recall": float,
    "exact_recall": float,
    "stubborn_tokens": int,
    "gpu_seconds": float,
    "charged_steps": float,
}
# Of a search with several placements: the name of each row's, and its adapter's parameters.
PLACEMENT, PARAMS = "placement", "adapter_params"
# Empty where not measured; older tables lack the column.
OPTIONAL_COLUMNS = {"control_delta_loss_nats": float, "answer_recall": float}
# Columns that serve as divisors or counts.
POSITIVE = ("rank", "length", "steps", "supervised_tokens", "gpu_seconds", "charged_steps")
LARGEST = 2.0**62
RunId = tuple[DesignPoint, int, int]


@dataclass(frozen=True)
class ReplayTable:
    """Rows by (point, sequence_id, seed), and the lines of provenance at the file's head."""

    rows: Mapping[RunId, Mapping[str, float]]
    provenance: tuple[str, ...]

    @property
    def placements(self) -> frozenset[str | None]:
        """Names of the rows' placements; None of rows without one."""
        return frozenset(point.placement for point, _, _ in self.rows)

    def charged_steps(self, runs: Sequence[RunId], decay_share: float | None) -> tuple[float, ...]:
        """Return the optimiser steps that each run would be charged if these were one pack.

        The table's own runs were packed with every budget of their family; a run that ended early
        in the table does here, by the same share. decay_share: the recipe's, None where budgets
        share no trunk.
        """
        here = _charged(runs, decay_share)
        there = _charged(list(self.rows), decay_share)
        return tuple(
            steps * self.rows[run]["charged_steps"] / there[run] for run, steps in here.items()
        )


def write_table(path: Path, observations: Iterable[Observation], provenance: Iterable[str]) -> int:
    """Write the law phase's observations below `# ` lines of provenance; return the row count."""
    rows = sorted(
        (o for o in observations if o.phase == "law"),
        key=lambda o: (o.point, o.sequence_id, o.seed),
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in provenance)
        placed = any(o.point.placement is not None for o in rows)
        columns = [*COLUMNS, *OPTIONAL_COLUMNS, *((PLACEMENT, PARAMS) if placed else ())]
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(_row(o) for o in rows)
    return len(rows)


def table_provenance(search_id: str, observations: Sequence[Observation]) -> tuple[str, ...]:
    """Return the origin of a table's rows: their search, and the observations' provenance.

    DataError without observations of the law's phase.
    """
    law = [o for o in observations if o.phase == "law"]
    if not law:
        raise DataError("no observations of the law's phase: there is nothing to put into a table")
    if any(o.provenance.get("from_adapter") for o in law):
        raise DataError(
            "these runs began with an adapter, and a table is of runs from scratch: pmlray fit"
            " reads their store"
        )

    def all_of(name: str) -> str:
        found = {str(o.provenance.get(name, "unknown")) for o in law}
        return ", ".join(sorted(found))

    versions = {
        f"{package} {version}"
        for o in law
        for package, version in o.provenance.get("versions", {}).items()
    }
    finished = sorted(str(o.provenance.get("finished", "unknown")) for o in law)
    return (
        f"search {search_id}: {len(law)} runs of task {law[0].task}, model {all_of('model')}",
        "losses in nats per supervised token; gpu_seconds are device-seconds of one"
        f" {all_of('gpu_seconds_unit')}, {all_of('device_name')}",
        f"{', '.join(sorted(versions))}",
        f"measured {finished[0]} to {finished[-1]}",
        *(f"replayed from: {line}" for line in law[0].provenance.get("replayed", ())),
    )


def read_table(path: Path) -> ReplayTable:
    """Read a table; DataError names the line that cannot be read."""
    path = here_or_shipped(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table in UTF-8 ({error})") from error
    provenance = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    body = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not body:
        raise DataError(f"{path}: the table is empty")
    names = _cells(path, *body[0])
    if missing := set(COLUMNS) - set(names):
        raise DataError(f"{path}, line {body[0][0]}: no column {', '.join(sorted(missing))}")
    rows: dict[RunId, dict[str, float]] = {}
    for number, line in body[1:]:
        cells = dict(zip(names, _cells(path, number, line), strict=False))
        try:
            row = {name: kind(cells[name]) for name, kind in COLUMNS.items()}
            optional = OPTIONAL_COLUMNS | {PARAMS: float}
            row |= {n: kind(cells[n]) for n, kind in optional.items() if cells.get(n)}
            _check(row)
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        sizes = int(row["rank"]), int(row["length"]), int(row["steps"])
        point = DesignPoint(*sizes, cells.get(PLACEMENT) or None)
        rows[point, int(row["sequence"]), int(row["seed"])] = row
    return ReplayTable(rows, provenance)


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: no line of a CSV ({error})") from error


def _check(row: Mapping[str, float]) -> None:
    """Raise ValueError for values that no run can have measured."""
    for name, value in row.items():
        # Also rejects NaN, infinities and integers too large for a float.
        if not -LARGEST < value < LARGEST:
            raise ValueError(f"{name} is {value}")
        if value <= 0 and name in POSITIVE:
            raise ValueError(f"{name} is {value}, which is not above 0")


class TableRunner:
    """PackRunner that looks its measurements up; a run that the table lacks fails.

    placed: what provenance tells of where a point's adapter sits.
    """

    def __init__(
        self,
        table: ReplayTable,
        store: ObservationStore,
        task: str,
        decay_share: float | None,
        placed: Callable[[DesignPoint], Mapping[str, Any]] = lambda point: {},
    ) -> None:
        self._table, self._store, self._task = table, store, task
        self._decay_share, self._placed = decay_share, placed

    def run(self, pack: Pack) -> PackResult:
        """Return the result of a pack from the table."""
        done, failed = [], []
        ids = [(run.point, run.sequence_id, run.seed) for run in pack.runs]
        plain = [i for i, run in zip(ids, pack.runs, strict=True) if run.method == "sft"]
        known = [i for i in plain if i in self._table.rows]
        charged = dict(zip(known, self._table.charged_steps(known, self._decay_share), strict=True))
        for place, run in enumerate(pack.runs):
            row = self._table.rows.get(ids[place])
            if row is None or run.method != "sft":
                failure = FailedRun(
                    run.run_key, run.point, pack.round, place, "not in the table", 0.0
                )
                self._store.put_failure(failure)
                failed.append(failure)
                continue
            steps = charged[ids[place]]
            observation = self._observation(run, row, pack.round, place, steps)
            self._store.put(observation)
            done.append(observation)
        seconds = sum(o.gpu_seconds for o in done)
        times = PackTimes(pack.pack_id, pack.round, seconds, seconds)
        return PackResult(pack, tuple(done), tuple(failed), times)

    def _observation(
        self, run: PlannedRun, row: Mapping[str, float], round_: int, place: int, charged: float
    ) -> Observation:
        steps, tokens = run.point.train_steps, int(row["supervised_tokens"])
        gpu_seconds = row["gpu_seconds"] * charged / row["charged_steps"]
        return Observation(
            run_key=run.run_key,
            point=run.point,
            task=self._task,
            method=run.method,
            seed=run.seed,
            sequence_id=run.sequence_id,
            phase=run.phase,
            round=round_,
            place=place,
            supervised_tokens=tokens,
            base_loss=row["base_loss_nats"],
            final_loss=row["final_loss_nats"],
            recall=Recall(
                row["token_recall"],
                row["prefix_recall"],
                row["exact_recall"],
                int(row["stubborn_tokens"]),
                row.get("answer_recall"),
            ),
            curve=((0, row["base_loss_nats"]), (steps, row["final_loss_nats"])),
            token_p=(),
            wrong_tokens=(),
            generated_match=None,
            gpu_seconds=gpu_seconds,
            charged_steps=charged,
            tokens_per_second=tokens * charged / gpu_seconds,
            peak_memory_bytes=0,
            provenance={
                "replayed": list(self._table.provenance),
                **self._placed(run.point),
            },
            control_delta_loss=row.get("control_delta_loss_nats"),
        )


def _charged(runs: Sequence[RunId], decay_share: float | None) -> dict[RunId, float]:
    families: dict[tuple[Family, int, int], list[RunId]] = {}
    for run in runs:
        point, sequence_id, seed = run
        same = (point.family, sequence_id, seed)
        families.setdefault(same, []).append(run)
    charged: dict[RunId, float] = {}
    for family in families.values():
        steps = charged_steps([point.train_steps for point, _, _ in family], decay_share)
        charged |= zip(family, steps, strict=True)
    return {run: charged[run] for run in runs}


def _row(o: Observation) -> dict[str, str]:
    values = {
        "rank": o.point.lora_rank,
        "length": o.point.seq_len,
        "steps": o.point.train_steps,
        "sequence": o.sequence_id,
        "seed": o.seed,
        "supervised_tokens": o.supervised_tokens,
        "base_loss_nats": o.base_loss,
        "final_loss_nats": o.final_loss,
        "delta_loss_nats": o.delta_loss,
        "token_recall": o.recall.token,
        "prefix_recall": o.recall.prefix,
        "exact_recall": o.recall.exact,
        "stubborn_tokens": o.recall.n_stubborn,
        "gpu_seconds": o.gpu_seconds,
        "charged_steps": o.charged_steps,
        "control_delta_loss_nats": o.control_delta_loss,
        "answer_recall": o.recall.answered,
    }
    row = {name: "" if value is None else f"{value:.7g}" for name, value in values.items()}
    if o.point.placement is not None:
        row |= {PLACEMENT: o.point.placement, PARAMS: str(o.provenance.get(PARAMS, ""))}
    return row
