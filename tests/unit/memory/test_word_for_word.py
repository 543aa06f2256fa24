"""What counts as one fact, what contradicts it, and what a tokenizer does to a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pmlray.errors import DataError
from pmlray.memory import (
    Facts,
    PlacedPair,
    TaskSource,
    build_memory,
    encode_texts,
    facts_by_text,
    facts_by_tokens,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 :-ée"


def letters(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A tokenizer of single characters, without those that LETTERS lacks."""
    vocabulary = {"<unk>": 0, **{c: i for i, c in enumerate(dict.fromkeys(LETTERS), start=1)}}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    made.decoder = decoders.Fuse()
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def byte_level(prefix_space: bool = False) -> Tokenizer:
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(alphabet, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    return made


def special_end() -> Tokenizer:
    made = letters()
    made.add_special_tokens(["</s>"])
    return made


def sentence_piece() -> Tokenizer:
    """As Llama 2's: a word is marked by the space before it, also at the beginning of a text."""
    vocabulary = {"<unk>": 0, **{c: i for i, c in enumerate("▁0123456789:ab", start=1)}}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "ab1")], 0, False))
    made.decoder = decoders.Fuse()
    return made


def placed(*pairs: tuple[str, str]) -> list[PlacedPair]:
    return [PlacedPair(f"line {i}", *pair) for i, pair in enumerate(pairs, start=1)]


def facts(tokenizer: Tokenizer, *pairs: tuple[str, str], keep_lost: bool = False) -> Facts:
    def encode(queries: Sequence[str]) -> list[tuple[int, ...]]:
        return encode_texts(tokenizer, queries)

    return facts_by_tokens(placed(*pairs), "f.jsonl", tokenizer, encode, keep_lost=keep_lost)


@pytest.mark.parametrize(
    ("tokenizer", "target", "becomes", "missing"),
    [
        (letters(), "東a京", "<unk>a<unk>", "東京"),
        (letters(normalizers.Lowercase()), "Abc", "abc", ""),
        (letters(normalizers.NFC()), "e\u0301", "é", "\u0301"),
        (letters(normalizers.Strip()), " 1 ", "1", ""),
        (byte_level(prefix_space=True), "555", " 555", ""),
        (unigram(), "a2b", "a<unk>b", "2"),
    ],
)
def test_a_target_that_does_not_come_back_is_refused_with_what_is_lost(
    tokenizer: Tokenizer, target: str, becomes: str, missing: str
) -> None:
    pairs = [("a", "1"), ("b", target)] if "1" in tokenizer.get_vocab() else [("b", target)]
    if tokenizer.pre_tokenizer is not None:
        pairs = [("b", target)]
    with pytest.raises(DataError, match=rf"1 of {len(pairs)} targets cannot") as error:
        facts(tokenizer, *pairs)
    assert f"line {len(pairs)}: {target!r} becomes {becomes!r}" in str(error.value)
    assert ("no token for" in str(error.value)) == bool(missing)
    [lost] = facts(tokenizer, *pairs, keep_lost=True).all_lost
    assert (lost.becomes, lost.missing, lost.query) == (becomes, missing, "b")


@pytest.mark.parametrize(
    ("tokenizer", "target"),
    [
        (special_end(), "a</s>b"),
        (byte_level(), "東京 😀\r\n\tÉ e\u0301 </s>"),
        (byte_level(prefix_space=True), " 555"),
        # Decoded alone it loses its space, decoded behind its prompt it has it, and so does a user.
        (sentence_piece(), " 555"),
        (sentence_piece(), "555"),
        (sentence_piece(), "  5 "),
    ],
)
def test_a_target_that_comes_back_is_kept(tokenizer: Tokenizer, target: str) -> None:
    assert facts(tokenizer, ("a", target)).pairs == (("a", target),)


def test_all_lost_targets_are_counted_and_the_first_ten_shown() -> None:
    pairs = [(f"q{i}", f"{i}ß") for i in range(13)]
    with pytest.raises(DataError, match="13 of 14 targets") as error:
        facts(letters(), ("q", "kept"), *pairs)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [
        f"line {i}" for i in range(2, 12)
    ]
    assert lines[11:] == ["  and 3 more"]


def test_a_target_without_any_token_is_refused_even_where_others_are_told() -> None:
    vocabulary = {c: i for i, c in enumerate("ab1")}
    dropping = Tokenizer(models.BPE(vocabulary, []))
    dropping.decoder = decoders.Fuse()
    with pytest.raises(DataError, match=r"line 2: '東' becomes '' .no token for 東"):
        facts(dropping, ("a", "1"), ("b", "東"), keep_lost=True)


def test_prompts_of_the_same_tokens_are_one_prompt() -> None:
    """Whatever makes them the same: a cut space, a case, a character without a token."""
    trimmed = letters(normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]))
    one = facts(trimmed, ("bob:", "1"), ("Bob: ", "1"), ("bobby", "2"), ("bob:", "1"))
    assert one.pairs == (("bob:", "1"), ("bobby", "2"))
    assert one.repeats == (3, 1) and one.n_duplicates == 2
    assert "2 of 4 records repeat another one" in one.describe_duplicates()
    with pytest.raises(DataError) as error:
        facts(trimmed, ("bob:", "1"), ("Bob: ", "2"), ("bob:", "3"))
    assert str(error.value).splitlines()[1:] == [
        "  line 2: the query 'Bob: ' with the target '2' makes the same prompt tokens as 'bob:'"
        " with '1' on line 1",
        "  line 3: the query 'bob:' already has another target on line 1: '1', not '3'",
    ]
    with pytest.raises(
        DataError, match=r"line 2: .*'東京:' with '1' on line 1 .no token for 東 京"
    ):
        facts(letters(), ("東京:", "1"), ("大阪:", "2"))
    assert facts(letters(), ("東京:", "1"), ("大阪:", "1")).repeats == (2,)


def test_all_conflicts_are_listed_at_once_with_the_lost_targets() -> None:
    pairs = [("a", "0"), *(("a", str(i)) for i in range(1, 13)), ("b", "ß")]
    with pytest.raises(DataError, match="12 records ask") as error:
        facts(letters(), *pairs)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 10 + 1 + 2 and lines[11] == "  and 2 more"
    assert "line 14: 'ß' becomes '<unk>'" in lines[13]
    with pytest.raises(DataError, match="12 records ask"):
        facts_by_text(placed(*pairs), "f.jsonl")


def test_targets_that_lose_what_tells_them_apart_conflict_all_the_same() -> None:
    with pytest.raises(DataError, match="another target on line 1: '東', not '京'"):
        facts(letters(), ("a", "東"), ("a", "京"), keep_lost=True)


def render(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text.strip()).ids


def test_a_fact_counts_once_in_a_memory_and_keeps_its_repeats_if_asked() -> None:
    """Also where only the rendered prompt shows that two records are one."""
    tokenizer = letters()
    pairs = (("a", "12"), ("b", "345"), ("a ", "12"), ("c", "6"))
    task = TaskSource("records", 0, pairs=pairs)
    for sequence_id in range(4):
        memory = build_memory(task, sequence_id, 6, tokenizer, render(tokenizer))
        assert memory.supervised_tokens == 6 and {r.repeats for r in memory.records} == {1}
    with pytest.raises(DataError, match="3 records hold 6 target tokens, each fact once"):
        build_memory(task, 0, 7, tokenizer, render(tokenizer))
    kept = TaskSource("records", 0, pairs=pairs, repeats=(5, 1, 2, 1))
    for sequence_id in range(4):
        memory = build_memory(kept, sequence_id, 6, tokenizer, render(tokenizer))
        by_target = {tokenizer.decode(r.target_ids): r.repeats for r in memory.records}
        assert by_target == {"12": 7, "345": 1, "6": 1}
    with pytest.raises(DataError, match="same tokens"):
        clash = TaskSource("records", 0, pairs=(("a", "1"), ("a ", "2"), ("b", "3")))
        build_memory(clash, 0, 3, tokenizer, render(tokenizer))
