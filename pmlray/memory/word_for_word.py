"""Records as facts: rows that are one fact, rows that contradict each other, targets that a
tokenizer does not give back as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from pmlray.errors import DataError
from pmlray.memory.reading.dialogue import Query, query_text
from pmlray.memory.reading.layouts import Columns
from pmlray.memory.reading.rows import PlacedPair, RecordSource, read_rows
from pmlray.memory.tokens import encode_texts

# How many of a message's records are shown, and how many characters of each text.
SHOWN, SHOWN_CHARACTERS = 10, 80
# Text before a target when it is decoded in its place rather than alone.
BEFORE = ":"

EncodePrompts = Callable[[Sequence[Query]], Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class LostText:
    """A target that its tokens do not give back.

    `becomes`: the text that they decode to; `missing`: its characters that have no token.
    """

    place: str
    query: str
    target: str
    becomes: str
    missing: str

    def describe(self) -> str:
        """Return one line: the place, what the text becomes, and the characters without a token."""
        without = f" (no token for {' '.join(self.missing)})" if self.missing else ""
        return f"{self.place}: {_quoted(self.target)} becomes {_quoted(self.becomes)}{without}"

    def to_json(self) -> dict[str, str]:
        """Return JSON types only."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Facts:
    """Different facts of a file of records, in its order, each by its first row.

    `repeats`: how many rows hold each fact; `lost`: what its tokens do not give back, else None.
    """

    rows: tuple[PlacedPair, ...]
    repeats: tuple[int, ...]
    lost: tuple[LostText | None, ...]

    @property
    def pairs(self) -> tuple[tuple[Query, str], ...]:
        """Query and target of every fact."""
        return tuple((row.query, row.target) for row in self.rows)

    @property
    def n_duplicates(self) -> int:
        """Rows that repeat a fact of an earlier row."""
        return sum(self.repeats) - len(self.repeats)

    @property
    def all_lost(self) -> tuple[LostText, ...]:
        """The targets that their tokens do not give back."""
        return tuple(lost for lost in self.lost if lost is not None)

    def describe_duplicates(self, kept: bool = False) -> str:
        """Return a sentence on the rows that repeat a fact; empty where there are none.

        kept: whether training shows each fact as often as it stands in the file.
        """
        if not self.n_duplicates:
            return ""
        shown = ", trained on as often as it stands there" if kept else ""
        return (
            f"{self.n_duplicates} of {sum(self.repeats)} records repeat another one: each of the"
            f" {len(self.rows)} different facts counts once{shown}"
        )

    def describe_lost(self) -> str:
        """Return lines on the targets that cannot be recalled word for word; empty if none."""
        if not self.all_lost:
            return ""
        head = (
            f"{len(self.all_lost)} of {len(self.rows)} targets are changed by the tokenizer and"
            " count as not recalled:"
        )
        return _listed(head, [lost.describe() for lost in self.all_lost])


def facts_by_text(rows: Sequence[PlacedPair], where: str) -> Facts:
    """Return the facts of rows, told apart by their texts, where no tokenizer is at hand.

    where: the records' file, for messages. DataError names all rows whose query has another target.
    """
    queries = [row.query for row in rows]
    facts, conflicts = _grouped(rows, queries, [row.target for row in rows])
    if conflicts:
        raise DataError(_conflicting(where, conflicts, None))
    return facts


def read_records(path: Path, columns: Columns | None = None) -> tuple[tuple[Query, str], ...]:
    """Read the (query, target) pairs of a file or folder, in its order, repetitions included.

    path, columns: as of `read_rows`, whose errors it raises. DataError too where one query has two
    targets.
    """
    rows = read_rows(RecordSource(path, columns))
    facts_by_text(rows, str(path))
    return tuple((row.query, row.target) for row in rows)


def facts_by_tokens(
    rows: Sequence[PlacedPair],
    where: str,
    tokenizer: Tokenizer,
    encode_prompts: EncodePrompts,
    *,
    keep_lost: bool = False,
) -> Facts:
    """Return the facts of rows, told apart by the tokens of their prompts and targets.

    encode_prompts: queries to the token ids of their prompts, or to their texts where the prompts
    cannot be rendered. keep_lost: accept targets that decode to another text, and say which.
    DataError names all rows that conflict, and all such targets unless they are kept.
    """
    targets = encode_texts(tokenizer, [row.target for row in rows])
    lost = _lost(tokenizer, rows, targets)
    # Targets that lose their text can have the same tokens and yet be different answers.
    answers = [
        row.target if i in lost else ids
        for i, (row, ids) in enumerate(zip(rows, targets, strict=True))
    ]
    prompts = encode_prompts([row.query for row in rows])
    facts, conflicts = _grouped(rows, prompts, answers, lost)
    problems = [_conflicting(where, conflicts, tokenizer)] if conflicts else []
    empty = [row for row, ids in zip(rows, targets, strict=True) if not ids]
    refused = facts.all_lost if empty or not keep_lost else ()
    if refused:
        problems.append(
            _listed(
                f"{where}: {len(refused)} of {len(facts.rows)} targets cannot come back word for"
                " word, since the tokenizer changes their text; change them, or use a base whose"
                " tokenizer keeps it:",
                [lost.describe() for lost in refused],
            )
        )
    if problems:
        raise DataError("\n".join(problems))
    return facts


def missing_characters(tokenizer: Tokenizer, text: str) -> str:
    """Return the characters of a text that have no token, each once, in order; no white space."""
    characters = [c for c in dict.fromkeys(text) if not c.isspace()]
    unknown = _unknown_id(tokenizer)
    ids = encode_texts(tokenizer, characters)
    return "".join(c for c, own in zip(characters, ids, strict=True) if not own or unknown in own)


def _lost(
    tokenizer: Tokenizer, rows: Sequence[PlacedPair], targets: Sequence[tuple[int, ...]]
) -> dict[int, LostText]:
    """Return the targets that are not decoded as they are, by index.

    A user gets an answer in one of two ways: its new tokens decoded alone, or the whole text
    decoded, of which the answer is what follows the prompt. They differ where a tokenizer marks
    words by the space before them (SentencePiece): it drops that space at the beginning of a text.
    So a target is kept if either way gives it back.
    """
    alone = tokenizer.decode_batch([list(ids) for ids in targets], skip_special_tokens=False)
    changed = [i for i, row in enumerate(rows) if alone[i] != row.target]
    if not changed:
        return {}
    (before,) = encode_texts(tokenizer, [BEFORE])
    start = tokenizer.decode(list(before), skip_special_tokens=False)
    behind = tokenizer.decode_batch(
        [[*before, *targets[i]] for i in changed], skip_special_tokens=False
    )
    return {
        i: LostText(
            rows[i].place,
            query_text(rows[i].query),
            rows[i].target,
            alone[i],
            missing_characters(tokenizer, rows[i].target),
        )
        for i, whole in zip(changed, behind, strict=True)
        if whole != start + rows[i].target
    }


def _grouped(
    rows: Sequence[PlacedPair],
    prompts: Sequence[Hashable],
    answers: Sequence[Hashable],
    lost: Mapping[int, LostText] | None = None,
) -> tuple[Facts, list[tuple[PlacedPair, PlacedPair]]]:
    """Return the different facts, and each row of a prompt's other answers with its first row."""
    first: dict[Hashable, int] = {}
    repeats: dict[tuple[Hashable, Hashable], int] = {}
    kept: list[int] = []
    conflicts: list[tuple[PlacedPair, PlacedPair]] = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        fact = (prompt, answer)
        if fact not in repeats:
            kept.append(i)
            if (other := first.setdefault(prompt, i)) != i:
                conflicts.append((rows[other], rows[i]))
        repeats[fact] = repeats.get(fact, 0) + 1
    facts = Facts(
        tuple(rows[i] for i in kept),
        tuple(repeats.values()),
        tuple((lost or {}).get(i) for i in kept),
    )
    return facts, conflicts


def _conflicting(
    where: str, conflicts: Sequence[tuple[PlacedPair, PlacedPair]], tokenizer: Tokenizer | None
) -> str:
    lines: list[str] = []
    for first, other in conflicts[:SHOWN]:
        asked, before = query_text(other.query), query_text(first.query)
        line = f"{other.place}: the query {_quoted(asked)} "
        if asked == before:
            line += f"already has another target on {first.place}: {_quoted(first.target)}, not"
            line += f" {_quoted(other.target)}"
        else:
            line += f"with the target {_quoted(other.target)} makes the same prompt tokens as"
            line += f" {_quoted(before)} with {_quoted(first.target)} on {first.place}"
            if tokenizer and (unknown := missing_characters(tokenizer, before + asked)):
                line += f" (no token for {' '.join(unknown)})"
        lines.append(line)
    n = len(conflicts)
    head = (
        f"{where}: {n} record{'s ask' if n > 1 else ' asks'} for another target with the prompt of"
        " an earlier one; one prompt can have only one target to recall:"
    )
    return _listed(head, lines, len(conflicts))


def _listed(head: str, lines: Sequence[str], n: int | None = None) -> str:
    more = (len(lines) if n is None else n) - SHOWN
    tail = [f"and {more} more"] if more > 0 else []
    return "\n  ".join([head, *lines[:SHOWN], *tail])


def _quoted(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return repr(shown)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the unknown token; None where the model has none."""
    # The models of `tokenizers` name it in different ways; their stored form has two.
    model = cast("dict[str, Any]", json.loads(tokenizer.to_str())["model"])
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else tokenizer.token_to_id(token)
