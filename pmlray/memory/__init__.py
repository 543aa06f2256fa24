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
from pmlray.memory.records import MemorySet, Record, read_records, take_tokens
from pmlray.memory.tokens import clean_token_ids, encode_texts

__all__ = [
    "FRESH_SEQUENCE_ID",
    "MAX_RECORDS",
    "PROSE",
    "RANDOM_RATIOS",
    "MemorySet",
    "PromptRenderer",
    "Record",
    "TargetEncoder",
    "TaskKind",
    "TaskSource",
    "build_memory",
    "clean_token_ids",
    "encode_texts",
    "fresh_records",
    "long_context_ids",
    "phonebook_records",
    "phonebook_size",
    "prefix",
    "read_records",
    "replaced_positions",
    "take_tokens",
]
