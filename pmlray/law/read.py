"""Points of a law read from files: a CSV, a JSONL of stored observations or a store."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import LawData, check_observation, check_point, law_data
from pmlray.types import MALFORMED, Observation

NEEDED = ("rank", "length", "delta_loss_nats")
# The run that a row is of; without them every row is its own cluster.
RUN = ("sequence", "seed")
# Losses of a row may differ by their rounding, not by more than this share of the base loss.
CONTRADICTION = 0.01
OPTIONAL = ("steps", "supervised_tokens", "base_loss_nats", "final_loss_nats", *RUN)


def read_law_data(path: str | Path, base_loss: float | None = None) -> LawData:
    """Read points from a CSV, a JSONL of stored observations or a store folder.

    A CSV has the columns rank, length and delta_loss_nats (lines that begin with # are skipped);
    steps, supervised_tokens (then l is that), base_loss_nats, final_loss_nats, sequence and seed
    are read where there are such columns, and an empty cell is a number not known. With one of
    sequence and seed alone, that makes the clusters. Where the base loss is not given it is
    `base_loss` (nats per token, None when unknown). A folder holds one stored observation a file,
    in `observations/*.json` or, where there is no such folder, in `*.json`. Raises DataError naming
    the file and line.
    """
    source = Path(path)
    if base_loss is not None and not (math.isfinite(base_loss) and base_loss > 0):
        raise DataError(f"base_loss is {base_loss}; expected nats per token above 0")
    if source.is_dir():
        return law_data(_read_folder(source))
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder")
    if source.suffix == ".csv":
        return _read_csv(source, math.nan if base_loss is None else base_loss)
    if source.suffix == ".jsonl":
        return law_data(_read_jsonl(source))
    raise DataError(
        f"{source}: expected a .csv ({', '.join(NEEDED)}), a .jsonl of stored observations"
        " or a store folder"
    )


def _read_csv(source: Path, base_loss: float) -> LawData:
    rows: list[dict[str, float]] = []
    of_run: dict[tuple[float, ...], tuple[int, float]] = {}
    header: list[str] | None = None
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        cells = _cells(where, line)
        if header is None:
            header = cells
            if missing := [name for name in NEEDED if name not in header]:
                raise DataError(
                    f"{where}: no column {', '.join(missing)};"
                    f" expected a header with {', '.join(NEEDED)}"
                )
            continue
        row = _numbers(where, line, dict(zip(header, cells, strict=False)))
        row.setdefault("steps", 0.0)
        row.setdefault("base_loss_nats", base_loss)
        row["l"] = row.get("supervised_tokens", row["length"])
        delta = row["delta_loss_nats"]
        check_point(where, row["rank"], row["l"], row["steps"], delta, row["base_loss_nats"])
        _check_losses(where, row)
        if set(RUN) <= set(row):
            run = (row["rank"], row["length"], row["steps"], *(row[name] for name in RUN))
            first, before = of_run.setdefault(run, (number, delta))
            if before != delta:
                raise DataError(
                    f"{where}: the run of line {first} with another delta_loss, {delta:g} and"
                    f" {before:g} nats: keep the one to be believed"
                )
            if first != number:
                continue
        rows.append(row)
    if not rows:
        raise DataError(f"{source}: no points; expected rows of {', '.join(NEEDED)}")
    n_known = sum(row["steps"] > 0 for row in rows)
    if 0 < n_known < len(rows):
        # A law of such points would leave its budget term out without a word.
        raise DataError(
            f"{source}: steps is known in {n_known} of {len(rows)} rows; give it in all, or leave"
            " the column out"
        )
    return _from_rows(rows)


def _cells(where: str, line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise DataError(f"{where}: no line of a CSV ({error})") from error


def _check_losses(where: str, row: Mapping[str, float]) -> None:
    """DataError where the three losses of a row contradict each other beyond rounding."""
    base, delta = row["base_loss_nats"], row["delta_loss_nats"]
    final = row.get("final_loss_nats", math.nan)
    if abs(base - delta - final) > CONTRADICTION * base:
        raise DataError(
            f"{where}: base_loss {base:g} less delta_loss {delta:g} is not final_loss {final:g}"
            " nats: mend the row"
        )


def _numbers(where: str, line: str, cells: Mapping[str, str]) -> dict[str, float]:
    try:
        row = {name: float(cells[name]) for name in NEEDED}
        row |= {name: float(cells[name]) for name in OPTIONAL if cells.get(name)}
    except (ValueError, KeyError):
        raise DataError(
            f"{where}: {line.strip()!r}; expected numbers for {', '.join(NEEDED)}"
        ) from None
    for name in OPTIONAL:
        if not math.isfinite(row.get(name, 0.0)):
            raise DataError(
                f"{where}: {name} is {row[name]}, expected a finite number; leave out a run that"
                " diverged, and the cell empty where the number is not known"
            )
    return row


def _from_rows(rows: list[dict[str, float]]) -> LawData:
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
    )


def _read_jsonl(source: Path) -> Iterator[Observation]:
    for number, line in enumerate(_lines(source), start=1):
        if line.strip():
            yield _parse(f"{source}, line {number}", line)


def _read_folder(source: Path) -> Iterator[Observation]:
    stored = source / "observations"
    files = sorted((stored if stored.is_dir() else source).glob("*.json"))
    if not files:
        raise DataError(f"{source}: no observations/*.json or *.json in this folder")
    for file in files:
        yield _parse(str(file), "\n".join(_lines(file)))


def _lines(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read as UTF-8 text ({error})") from error


def _parse(where: str, text: str) -> Observation:
    try:
        stored: Any = json.loads(text)
        observation = Observation.from_json(stored)
        check_observation(where, observation)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} (character {error.pos}): not JSON ({error.msg})") from error
    except (*MALFORMED, RecursionError) as error:
        raise DataError(
            f"{where}: not a stored observation ({error!r}); expected Observation.to_json's form"
        ) from error
    return observation
