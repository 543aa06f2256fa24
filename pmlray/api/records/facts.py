"""Facts of a records file by the base's own prompts, before anything is trained or decoded."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.record_facts import prompt_rows, read_facts
from pmlray.errors import DataError, StoreError
from pmlray.memory import Facts, RecordSource, encode_texts
from pmlray.types import Observation


def facts_for(
    records: RecordSource,
    model: Model,
    source: ModelSource,
    tokenizer: Tokenizer | None,
    prompt_format: Literal["plain", "chat"],
    keep_lost: bool = False,
) -> Facts:
    """Read the facts of records, by the rendered prompts where a plain tokenizer does not suffice.

    tokenizer: the base's; None: it is not at hand. A chat template is rendered where transformers
    is installed; without it chat prompts are compared before the template. keep_lost: as of
    `facts_by_tokens`. DataError names all rows that cannot be memorised as they are.
    """
    if tokenizer is not None and prompt_format == "plain":
        return read_facts(records, tokenizer, prompt_format, keep_lost)
    if find_spec("transformers") is None:
        return read_facts(records, tokenizer, prompt_format, keep_lost)
    from pmlray.engine.model.rendered_facts import base_tokenizer, rendered_facts

    rows = prompt_rows(records, prompt_format)
    loaded = base_tokenizer(model, source)
    return rendered_facts(rows, str(records), loaded, prompt_format, keep_lost=keep_lost)


def check_facts(search: PreparedSearch) -> None:
    """Check a search's records by their rendered prompts, where that was not done when it was read.

    DataError names all records that conflict or whose text the tokenizer changes; also where fewer
    tokens than the longest seq_len are left because rendered prompts are the same.
    """
    facts, spec = search.facts, search.spec
    local = search.source.folder is not None
    if facts is None or (local and spec.task.prompt_format == "plain"):
        return
    from pmlray.engine.model.rendered_facts import base_tokenizer, rendered_facts

    where = f"task.records of {spec.name}"
    tokenizer = base_tokenizer(spec.model, search.source)
    found = rendered_facts(facts.rows, where, tokenizer, spec.task.prompt_format)
    targets = [row.target for row in found.rows]
    held = sum(map(len, encode_texts(tokenizer.backend_tokenizer, targets)))
    if held < max(spec.space.seq_len):
        raise DataError(
            f"{where}: {len(found.rows)} different records hold {held} target tokens, each fact"
            f" once; use a space.seq_len of at most {held} or add records"
        )


def check_same_records(
    search: PreparedSearch, observations: Iterable[Observation], folder: Path
) -> None:
    """Check that a store's runs count repeated records as this search does.

    Former versions counted each repetition as a record of its own. StoreError where such runs would
    be mixed with new ones.
    """
    if search.facts is None or not search.facts.n_duplicates:
        return
    for o in observations:
        rates = (None, o.learning_rate)
        planned = (o.point, o.method, o.sequence_id, o.seed, o.phase)
        if all(search.plan_run(*planned, rate).run_key != o.run_key for rate in rates):
            raise StoreError(
                f"{folder} holds runs of other records, or of a version that counted a repeated"
                " record more than once; choose another --store"
            )


def check_same_start(
    search: PreparedSearch, observations: Iterable[Observation], folder: Path
) -> None:
    """Check that a store's runs began with the same adapter as this search's; else StoreError."""
    if search.start is None:
        return
    for o in observations:
        if (o.provenance.get("from_adapter") or {}).get("sha256") != search.start.sha256:
            raise StoreError(
                f"{folder} holds runs that began with another adapter than the one that"
                " adapter.from_adapter now names; choose another --store"
            )
