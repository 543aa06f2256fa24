"""Headers of safetensors files, read without their weights and without torch.

A file is 8 bytes of a length, a JSON header of that length, and the values of the tensors.
Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pmlray.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Bytes of a number; files of other types hold quantised weights.
FLOATS: Mapping[str, int] = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
# Their bits as integers, and those of the exponent among them.
NOT_FINITE = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
# Limit of the safetensors library on a header's bytes.
MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """Type, as safetensors names it, and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder's weights by name: of its one file, or of all in its index.

    ModelError where a file is missing or damaged, or a tensor stands in two files.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    index = folder / INDEX
    files = shards(read_json(index), str(index))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{index} names {len(files)} files of weights, of which {listed(absent)} are missing;"
            " copy or download them too"
        )
    return joined(((name, read_header(folder / name)) for name in files), str(folder))


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file by name; ModelError where it is damaged or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        found = dict[str, Tensor]()
        end = 0
        for name, row in header.items():
            if name == "__metadata__":
                continue
            found[name] = tensor = Tensor(row["dtype"], tuple(row["shape"]))
            begin, until = row["data_offsets"]
            needed = math.prod(tensor.shape) * FLOATS.get(tensor.dtype, 0)
            if needed and until - begin != needed:
                raise ValueError(f"{name} has {until - begin} bytes instead of {needed}")
            end = max(end, until)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ModelError(
            f"{path} is no whole safetensors file ({error}); copy or download it again"
        ) from error
    return found


def not_finite(content: bytes) -> list[str]:
    """Return the tensors with infinities or NaN in the content of a whole file of F32, BF16 and
    F16."""
    length = int.from_bytes(content[:8], "little")
    found = list[str]()
    for name, row in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        # Numbers that are not finite have all bits of the exponent.
        kind, exponent = NOT_FINITE[row["dtype"]]
        begin, end = (8 + length + at for at in row["data_offsets"])
        bits = np.frombuffer(content[begin:end], kind)
        if ((bits & exponent) == exponent).any():
            found.append(name)
    return found


def shards(index: Any, where: str) -> list[str]:
    """Return the names of the files in an index of weights; ModelError where it names none."""
    try:
        names = sorted(set(index["weight_map"].values()))
        good = bool(names) and all(name == Path(name).name for name in names)
    except (AttributeError, LookupError, TypeError) as error:
        raise ModelError(f"{where} is no index of weights ({error!r}); download it again") from (
            error
        )
    if not good:
        raise ModelError(f"{where} names no files of its own folder; download it again")
    return names


def joined(files: Iterable[tuple[str, Mapping[str, Tensor]]], where: str) -> dict[str, Tensor]:
    """Return the tensors of several files; ModelError where one stands in two of them."""
    found, of_file = dict[str, Tensor](), dict[str, str]()
    for file, tensors in files:
        for name, tensor in tensors.items():
            if name in found:
                raise ModelError(
                    f"{where}: {name} stands in {of_file[name]} and in {file}, which may differ;"
                    " remove the files that do not belong to this model"
                )
            found[name], of_file[name] = tensor, file
    return found


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a model; ModelError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error})") from error


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return names as text; of many, the first ones and the number of the others."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
