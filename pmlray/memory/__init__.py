"""Texts to memorise: every task as prompts and supervised targets in token ids."""

from pmlray.memory.fresh import FRESH_SEQUENCE_ID, fresh_records
from pmlray.memory.long_context import RANDOM_RATIOS, long_context_ids, replaced_positions
from pmlray.memory.memory_set import PromptRenderer, TaskKind, TaskSource, build_memory, prefix
from pmlray.memory.phonebook import (
    MAX_RECORDS,
    TargetEncoder,
    phonebook_records,
    phonebook_size,
)
from pmlray.memory.prose import PROSE
from pmlray.memory.reading.dialogue import Query, plain_query, query_text
from pmlray.memory.reading.layouts import Columns
from pmlray.memory.reading.rows import PlacedPair, RecordSource, read_rows
from pmlray.memory.records import MemorySet, Record, take_tokens
from pmlray.memory.tokens import clean_token_ids, encode_texts
from pmlray.memory.word_for_word import (
    Facts,
    LostText,
    facts_by_text,
    facts_by_tokens,
    read_records,
)

__all__ = [
    "FRESH_SEQUENCE_ID",
    "MAX_RECORDS",
    "PROSE",
    "RANDOM_RATIOS",
    "Columns",
    "Facts",
    "LostText",
    "MemorySet",
    "PlacedPair",
    "PromptRenderer",
    "Query",
    "Record",
    "RecordSource",
    "TargetEncoder",
    "TaskKind",
    "TaskSource",
    "build_memory",
    "clean_token_ids",
    "encode_texts",
    "facts_by_text",
    "facts_by_tokens",
    "fresh_records",
    "long_context_ids",
    "phonebook_records",
    "phonebook_size",
    "plain_query",
    "prefix",
    "query_text",
    "read_records",
    "read_rows",
    "replaced_positions",
    "take_tokens",
]
