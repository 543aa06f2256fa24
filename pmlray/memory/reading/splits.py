"""Rows of one split of a data set, of the Hugging Face hub or of a folder, by its own library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pmlray.errors import DataError
from pmlray.memory.reading.tables import SPLITS_FILE, dataset_rows


def split_rows(name: str, split: str) -> tuple[Mapping[str, Any], ...]:
    """Return the rows of a split.

    Args:
        name: id of a data set on the hub; or a folder, of a DatasetDict that `save_to_disk` wrote,
            or of data files as a hub's repository has them.
        split: such as `train`, or `train[:100]` as `datasets.load_dataset` takes it.

    Raises:
        DataError: `datasets` is not installed, or cannot load it from here.

    Example:
        >>> split_rows("tatsu-lab/alpaca", "train[:40]")
    """
    folder = Path(name)
    if (folder / SPLITS_FILE).is_file():
        return tuple(row for _, row in dataset_rows(folder, split))
    try:
        library: Any = import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{name}, split {split}: reading it needs the library datasets; run: pip install"
            " datasets"
        ) from error
    try:
        return tuple(cast("Any", library.load_dataset(name, split=split)))
    except library.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{name}: no folder here, and no data set that the hub shows you; check the name, log"
            " in by `hf auth login`, or give a file"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{name}: no folder here, and the hub cannot be reached ({error}); where there is a"
            " network, save it as a file, such as by Dataset.to_json, and give that"
        ) from error
    except (library.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{name}, split {split}: datasets cannot load it ({error})") from error
