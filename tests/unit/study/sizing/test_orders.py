"""Which of the records the law's subsets are: a file's own order must not choose them."""

from __future__ import annotations

from collections import defaultdict

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Model, Probe
from pmlray.memory import MemorySet, TaskSource, build_memory, prefix
from pmlray.study.sizing.request import RecordSet, first_runs, search_spec

# Sorted by what makes them easy: each one's number is its target.
N_RECORDS = 64
PAIRS = tuple((f"q{i}", f"t{i}") for i in range(N_RECORDS))
WORDS = {word: i for i, word in enumerate(word for pair in PAIRS for word in pair)}


def search_of_records() -> PreparedSearch:
    records = RecordSet(PAIRS, (1,) * N_RECORDS, (1,) * N_RECORDS)
    spec = search_spec(
        records, Model(id=TINY, dtype="float32"), Probe(layer=1), 8, 400, "plain"
    )  # fmt: skip
    return PreparedSearch(spec, resolve_model(TINY, None), TaskSource("records", 0, pairs=PAIRS))


def ordered(search: PreparedSearch, sequence_id: int) -> MemorySet:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="q0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return build_memory(
        search.task, sequence_id, N_RECORDS, tokenizer, lambda text: tokenizer.encode(text).ids
    )


def places(memory: MemorySet) -> list[float]:
    """Where in the file the records stand, 0 to 1."""
    return [(r.target_ids[0] - 1) / 2 / (N_RECORDS - 1) for r in memory.records]


def test_no_subset_is_the_beginning_of_the_file() -> None:
    search = search_of_records()
    spec = search.spec
    assert len(set(spec.sequences)) >= 3 and 0 not in spec.sequences
    smallest = [prefix(ordered(search, n), spec.space.seq_len[0]) for n in spec.sequences]
    of_file = prefix(ordered(search, 0), spec.space.seq_len[0])
    assert max(places(of_file)) < 0.12
    for subset in smallest:
        found = places(subset)
        # The mean of 8 drawn without order scatters by 0.1 around the middle.
        assert len(found) == 8 and 0.2 < sum(found) / 8 < 0.8
    assert len({tuple(places(subset)) for subset in smallest}) == len(smallest)
    for n in spec.sequences:
        assert sorted(places(ordered(search, n))) == places(ordered(search, 0))


def test_the_first_runs_are_of_three_orders_and_share_their_trunks() -> None:
    orders = defaultdict(set)
    runs = first_runs(search_of_records())
    for run in runs:
        orders[run.point.lora_rank, run.point.seq_len].add(run.sequence_id)
    assert all(len(found) == 1 for found in orders.values())
    assert len({run.sequence_id for run in runs}) == 3
