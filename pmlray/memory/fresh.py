"""Fresh text of a task's distribution, on which no run trains."""

from __future__ import annotations

from functools import partial

from tokenizers import Tokenizer

from pmlray.memory.linear_rule import heldout_pairs
from pmlray.memory.long_context import long_context_ids
from pmlray.memory.memory_set import PromptRenderer, TaskSource, phonebook_pairs
from pmlray.memory.records import Record
from pmlray.memory.tokens import clean_token_ids, encode_texts

# Every sequence of a search has a smaller id, so that no fresh draw is one of a search's.
FRESH_SEQUENCE_ID = 2**32


def fresh_records(
    task: TaskSource,
    seq_len: int,
    n_tokens: int,
    used_text_tokens: int,
    tokenizer: Tokenizer,
    render_prompt: PromptRenderer,
    end_id: int | None = None,
) -> tuple[Record, ...]:
    """Draw records like those of a run of seq_len, from text on which no run of the search trains.

    n_tokens: supervised tokens to reach, over all records. A long context comes as sequences of
    min(seq_len, n_tokens) tokens, so that each position is one that the run was trained at; a phone
    book as whole entries, a linear rule as pairs that no run is trained on. used_text_tokens:
    tokens at the beginning of the base text that the search deals out; fresh stretches come from
    its end. end_id: the token that follows every target in training; None: none. Empty where there
    is no fresh text: a records task has no source, and a base text may be used up.
    """
    if task.kind == "records":
        return ()
    if task.kind in ("phonebook", "linear_rule"):
        if task.kind == "phonebook":
            pairs = phonebook_pairs(task, FRESH_SEQUENCE_ID, n_tokens, tokenizer)
        else:
            pairs = heldout_pairs(n_tokens, task.data_seed, partial(encode_texts, tokenizer))
        targets = encode_texts(tokenizer, [number for _, number in pairs])
        return tuple(
            Record(tuple(render_prompt(query)), ids, end_id)
            for (query, _), ids in zip(pairs, targets, strict=True)
        )
    length = min(seq_len, n_tokens)
    copies, text_ids = n_tokens // length, ()
    if task.random_ratio < 100:
        text_ids = encode_texts(tokenizer, [task.text or ""])[0]
        copies = min(copies, max(0, len(text_ids) - used_text_tokens) // length)
    prompt_ids, clean_ids = tuple(render_prompt(task.key_prompt)), clean_token_ids(tokenizer)
    return tuple(
        Record(
            prompt_ids,
            long_context_ids(
                length,
                clean_ids=clean_ids,
                random_ratio=task.random_ratio,
                data_seed=task.data_seed,
                sequence_id=FRESH_SEQUENCE_ID + copy,
                text_ids=text_ids,
                text_start=len(text_ids) - (copy + 1) * length,
            ),
            end_id,
        )
        for copy in range(copies)
    )
