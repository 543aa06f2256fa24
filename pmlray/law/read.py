"""Points of a law read from files: a CSV, a JSONL of stored observations or a store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmlray.errors import DataError
from pmlray.law.csv_points import NEEDED, read_csv_points
from pmlray.law.data import LawData, check_fall, check_observation, law_data
from pmlray.rebuild import MALFORMED
from pmlray.types import Observation
from pmlray.version import here_or_shipped


def read_law_data(path: str | Path, base_loss: float | None = None) -> LawData:
    """Read the points of a law from a CSV, a JSONL of stored observations or a store folder.

    A CSV has the columns rank, length and delta_loss_nats, and optionally steps, supervised_tokens
    (which then is l), base_loss_nats, final_loss_nats, sequence and seed; the names of stored
    observations (lora_rank, seq_len, train_steps, delta_loss, ...) mean the same. Of adapters in
    several places it has placement and adapter_params, the trainable parameters, which stand for a
    rank that is not there. Lines that begin with # are skipped, an empty cell is an unknown number,
    and without a length supervised_tokens is the length. Sequence and seed, or the one of them that
    is there, make the clusters. Rows that repeat a run count once. A folder holds one stored
    observation a file, in `observations/*.json` or, where there is no such folder, in `*.json`.

    Args:
        path: the file or folder.
        base_loss: nats per token, for rows of a CSV that do not give theirs; None when unknown.

    Returns:
        The points; their `notes` name the columns that are not used and count the repeats.

    Raises:
        DataError: names the file and, where there is one, the line.

    Example:
        >>> len(read_law_data("searches/tables/smollm2_phonebook.csv"))
        324
    """
    source = here_or_shipped(Path(path))
    if base_loss is not None and not (math.isfinite(base_loss) and base_loss > 0):
        raise DataError(f"base_loss is {base_loss}; expected nats per token above 0")
    if source.is_file() and source.suffix == ".csv":
        unknown = math.nan if base_loss is None else base_loss
        return read_csv_points(source, _lines(source), unknown)
    return law_data(read_observations(source))


def read_observations(source: Path) -> Iterator[Observation]:
    """Read the stored observations of a store's folder, or of a JSONL; DataError names the file
    and, where there is one, the line."""
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder")
    if source.suffix == ".jsonl":
        return _read_jsonl(source)
    raise DataError(
        f"{source}: expected a .csv ({', '.join(NEEDED)}), a .jsonl of stored observations"
        " or a store folder"
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
        check_fall(where, observation.delta_loss, observation.base_loss, observation.final_loss)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} (character {error.pos}): not JSON ({error.msg})") from error
    except (*MALFORMED, RecursionError) as error:
        raise DataError(
            f"{where}: not a stored observation ({error!r}); expected Observation.to_json's form"
        ) from error
    return observation
