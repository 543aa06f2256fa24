"""`pmlray.check_recall`: the records that an adapter recalls word for word, by greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmlray.api.environment.process import train_extra
from pmlray.api.records.source import Records, record_source
from pmlray.config.bases.model_spec import DtypeChoice

if TYPE_CHECKING:
    from pmlray.study.sizing.decoded_records import DecodedRecords


def check_recall(
    adapter: str | Path,
    records: Records,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    dtype: DtypeChoice = "auto",
    prompt_format: Literal["plain", "chat"] | None = None,
    end: bool | None = None,
    say: Callable[[str], None] | None = None,
) -> DecodedRecords:
    """Decode every record greedily with an adapter, as `pmlray recall` does.

    Args:
        adapter: folder of an adapter, of `size`, of a store or PEFT's own.
        records: file or folder of records with a query and a target each, or rows: dicts, a
            `datasets.Dataset` or a pandas frame.
        columns: names of the columns of `query` and `target`; by default a known layout's.
        split: of a data set, of which `records` is the id on the hub or the folder.
        model, revision, dtype, prompt_format: of the base; by default what the adapter was
            trained with, as its card or its store says.
        end: whether a record counts as recalled only where the answer ends after its target; by
            default true, unless the adapter's card or store says that no end was trained.
        say: called with each line of progress; by default none is shown.

    Returns:
        The answers, one a record, in the records' order, with `n_right`, `n_answered` and
        `exact_recall`.

    Raises:
        SpecError: the train extra is not installed.
        ModelError, DataError, StoreError: the adapter, its base or the records do not fit.

    Example:
        >>> found = check_recall("runs/rooms/adapter", "rooms.jsonl")     # decoded by torch
        >>> print(found.n_right, "of", len(found.pairs), "recalled")
        8 of 8 recalled
    """
    with train_extra():
        from pmlray.api import recall_check

    source = record_source(records, columns, split)
    request = recall_check.RecallRequest(
        Path(adapter), source, model, revision, dtype, prompt_format, end
    )
    search = recall_check.prepare_recall(request)
    return recall_check.decode_task(search, request.adapter, say or (lambda _: None))
