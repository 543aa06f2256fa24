"""The points a law is fitted to, and the files they are read from."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmlray.errors import DataError
from pmlray.types import Observation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

CSV_COLUMNS = ("rank", "length", "delta_loss_nats")


@dataclass(frozen=True, slots=True)
class LawData:
    """Measured points, one entry an observation; all arrays have shape (N,).

    `lora_rank` r >= 1; `seq_len` l >= 1, supervised tokens; `train_steps` t >= 0, 0 when unknown;
    losses are nats per supervised token, `base_loss` and `final_loss` NaN when unknown; `cluster`
    holds one id per (sequence_id, seed). Raises DataError on unequal shapes, a delta_loss that is
    not finite, a base_loss <= 0, or a rank or length below 1.
    """

    lora_rank: FloatArray
    seq_len: FloatArray
    train_steps: FloatArray
    delta_loss: FloatArray
    base_loss: FloatArray
    final_loss: FloatArray
    cluster: IntArray

    def __post_init__(self) -> None:
        if {getattr(self, f.name).shape for f in fields(self)} != {self.lora_rank.shape}:
            raise DataError("the arrays of LawData must all have the same shape (N,)")
        for i in range(self.lora_rank.size):
            _check_point(
                f"point {i}",
                float(self.lora_rank[i]),
                float(self.seq_len[i]),
                float(self.train_steps[i]),
                float(self.delta_loss[i]),
                float(self.base_loss[i]),
            )

    def __len__(self) -> int:
        return self.lora_rank.size

    def subset(self, mask: BoolArray | IntArray) -> LawData:
        """The points that a boolean mask (N,) or an index array selects."""
        return LawData(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def cells(self) -> IntArray:
        """Design-cell id of each point, shape (N,): equal where (r, l, t) are equal."""
        design = np.stack([self.lora_rank, self.seq_len, self.train_steps], axis=1)
        return np.unique(design, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def law_data(observations: Iterable[Observation]) -> LawData:
    """Collect what a law is fitted to: the law phase's runs; l is `supervised_tokens`.

    The SFT runs that MemFT is compared with are left out, so that a store always yields the law
    that its search went by.

    Raises DataError, naming the run_key, when a point cannot be used.
    """
    kept = [o for o in observations if o.phase == "law"]
    for o in kept:
        _check_observation(f"observation {o.run_key}", o)
    return _from_observations(kept)


def read_law_data(path: str | Path, base_loss: float | None = None) -> LawData:
    """Read points from a CSV, a JSONL of stored observations or a store folder.

    A CSV has the columns rank, length, delta_loss_nats (lines that begin with # are skipped); each
    row is its own cluster and its base loss is `base_loss` (nats per token, None when unknown),
    which stored observations carry themselves. A folder holds one stored observation a file, in
    `observations/*.json` or, where there is no such folder, in `*.json`. Raises DataError naming
    the file and line.
    """
    source = Path(path)
    if base_loss is not None and not (math.isfinite(base_loss) and base_loss > 0):
        raise DataError(f"base_loss is {base_loss}; expected nats per token above 0")
    if source.is_dir():
        return _from_observations(_read_folder(source))
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder")
    if source.suffix == ".csv":
        return _read_csv(source, base_loss)
    if source.suffix == ".jsonl":
        return _from_observations(_read_jsonl(source))
    raise DataError(
        f"{source}: expected a .csv ({', '.join(CSV_COLUMNS)}), a .jsonl of stored observations"
        " or a store folder"
    )


def _check_point(
    where: str, rank: float, length: float, steps: float, delta: float, base: float
) -> None:
    if not (math.isfinite(rank) and rank >= 1 and math.isfinite(length) and length >= 1):
        raise DataError(f"{where}: rank {rank:g} and length {length:g} must both be at least 1")
    if not (math.isfinite(steps) and steps >= 0):
        raise DataError(f"{where}: train_steps is {steps:g}, expected 0 (unknown) or more")
    if not math.isfinite(delta):
        raise DataError(f"{where}: delta_loss is {delta}, expected a finite number of nats")
    if base <= 0 or math.isinf(base):
        raise DataError(f"{where}: base_loss is {base}, expected nats per token above 0")


def _check_observation(where: str, o: Observation) -> None:
    point = o.point
    _check_point(
        where, point.lora_rank, o.supervised_tokens, point.train_steps, o.delta_loss, o.base_loss
    )


def _from_observations(observations: Iterable[Observation]) -> LawData:
    kept = [o for o in observations if o.phase == "law"]
    replicates = sorted({(o.sequence_id, o.seed) for o in kept})
    ids = {replicate: i for i, replicate in enumerate(replicates)}
    return LawData(
        lora_rank=np.array([o.point.lora_rank for o in kept], dtype=float),
        seq_len=np.array([o.supervised_tokens for o in kept], dtype=float),
        train_steps=np.array([o.point.train_steps for o in kept], dtype=float),
        delta_loss=np.array([o.delta_loss for o in kept], dtype=float),
        base_loss=np.array([o.base_loss for o in kept], dtype=float),
        final_loss=np.array([o.final_loss for o in kept], dtype=float),
        cluster=np.array([ids[o.sequence_id, o.seed] for o in kept], dtype=np.int64),
    )


def _read_csv(source: Path, base_loss: float | None) -> LawData:
    rows: list[tuple[float, float, float]] = []
    base = math.nan if base_loss is None else base_loss
    header: list[str] | None = None
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if header is None:
            header = cells
            missing = [name for name in CSV_COLUMNS if name not in header]
            if missing:
                raise DataError(
                    f"{source}, line {number}: no column {', '.join(missing)};"
                    f" expected a header with {', '.join(CSV_COLUMNS)}"
                )
            continue
        where = f"{source}, line {number}"
        try:
            rank, length, delta = (float(cells[header.index(name)]) for name in CSV_COLUMNS)
        except (ValueError, IndexError):
            raise DataError(
                f"{where}: {line.strip()!r}; expected numbers for {', '.join(CSV_COLUMNS)}"
            ) from None
        _check_point(where, rank, length, 0.0, delta, base)
        rows.append((rank, length, delta))
    if not rows:
        raise DataError(f"{source}: no points; expected rows of {', '.join(CSV_COLUMNS)}")
    rank, length, delta = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    bases = np.full(rank.size, base)
    return LawData(
        lora_rank=rank,
        seq_len=length,
        train_steps=np.zeros(rank.size),
        delta_loss=delta,
        base_loss=bases,
        final_loss=bases - delta,
        cluster=np.arange(rank.size, dtype=np.int64),
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
        _check_observation(where, observation)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} (character {error.pos}): not JSON ({error.msg})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: not a stored observation ({error!r}); expected Observation.to_json's form"
        ) from error
    return observation
