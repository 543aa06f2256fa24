"""Request of a sizing, with the specs of its search and its training.

Symbols: n records of l supervised tokens in all, T optimiser steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from pmlray.config.adapters.adapter_spec import Adapter, AdapterPlace, Probe
from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.model_spec import Model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import Budget, Design, Evaluate, SearchSpec, Space, Stop, Targets
from pmlray.config.task_spec import Task
from pmlray.errors import DataError, SpecError
from pmlray.memory import Query
from pmlray.types import DesignPoint, Method, PlannedRun

# Method of the adapter that is kept: where methods were compared (scripts/bench/results/memft.md)
# it recalled at least as much as SFT in the same steps, and it ends once all records are recalled.
# memft_sw, the best at the boundary of PhoneBook at rates tuned for it, recalled less on 300
# records with this recipe. The law remains one of SFT's loss: MemFT recalls at losses that say
# nothing about SFT's, so the rank is sized for SFT and checked by decoding.
METHOD: Method = "memft_ot"
# Records per step: an adapter needs many steps more than it needs large ones.
BATCH_SIZE = 8
EPOCHS = 40
LEAST_STEPS = 200
# Few records may take this rank at one layer's down_proj: 30 facts, taught where they end, took 8
# in 200 steps. Elsewhere it is the rank of as many parameters, but never one so small that a law of
# rank could not be measured.
LEAST_LARGEST, LEAST_OF_MANY_SITES = 16, 4
# Bits per parameter for which the largest rank of the search is sized; a token has at most log2 of
# the vocabulary.
LEAST_BITS_PER_PARAM = 1.0
# More bits per parameter than any transformer was measured to hold (3.6 in arXiv 2505.24832): if
# the adapter has fewer such bits than the set has tokens, no search is needed to reject it.
MOST_BITS_PER_PARAM = 4.0
# Shares of the records and of the steps at which the law is measured.
SUBSET_SHARES = (0.125, 0.25, 0.5, 1.0)
# Loss, nats per token, at which training stops: a twentieth of what 0.99 recall takes or less.
STOP_LOSS = 0.002
# Placeholder: the search's name holds a hash of the records, and their file may lie anywhere.
RECORDS_FILE = "records.jsonl"
# The search stops once the relative 90 % interval of the law at the likely ranks is so narrow.
KNOWN_MODELS = 0.02
# Random orders of the records, each by a seed of its own, whose beginnings are the subsets. Order
# 0, that of the file, is not used: if a file begins with easy records, so would every subset.
ORDERS = (1, 2, 3)
# Placeholder budget of a search until its first runs have been measured.
UNSETTLED = Budget(gpu_seconds=1.0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Share of records to recall word for word, and one-sided confidence that the rank does.

    SpecError when either is out of its range.
    """

    recall: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0.0 < self.recall <= 1.0:
            raise SpecError(
                f"--recall is {self.recall:g}; it is a share of the records, above 0 and at most 1,"
                " such as 0.99"
            )
        if not 0.5 <= self.confidence < 1.0:
            raise SpecError(
                f"--confidence is {self.confidence:g}; it is a probability from 0.5 to below 1,"
                " such as 0.9"
            )


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Different records to hold, with the target and prompt tokens of each, in file order.

    `n_duplicates`: rows of the file that repeat one of them; `repeats`: how often an epoch shows
    each, None for once.
    """

    pairs: tuple[tuple[Query, str], ...]
    target_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    n_duplicates: int = 0
    repeats: tuple[int, ...] | None = None

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens l of the whole set."""
        return sum(self.target_tokens)

    @property
    def tokens_per_record(self) -> float:
        """Mean target tokens of a record."""
        return self.supervised_tokens / len(self.pairs)

    @property
    def n_shown(self) -> int:
        """Records that an epoch shows, repetitions included."""
        return len(self.pairs) if self.repeats is None else sum(self.repeats)

    @property
    def content_hash(self) -> str:
        """First 8 hex digits of the SHA-256 of all queries and targets, in order, with their
        repeats where those count."""
        content = self.pairs if self.repeats is None else (self.pairs, self.repeats)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def default_layer(geometry: Geometry) -> int:
    """Return the layer two thirds up, where arXiv 2605.30260 probes its bases."""
    return 2 * geometry.n_layers // 3


def default_steps(n_records: int) -> int:
    """Return the optimiser steps in which every record is trained on EPOCHS times."""
    return max(LEAST_STEPS, EPOCHS * math.ceil(n_records / BATCH_SIZE))


def largest_rank(
    records: RecordSet, geometry: Geometry, placement: Placement, begins_with: int | None = None
) -> int:
    """Return the largest rank worth measuring: a power of two, or the smaller side of a module.

    begins_with: rank of the adapter to begin with, the smallest; None: there is none. The largest
    is so many times that rank that a law of rank can be measured.
    """
    bits = records.supervised_tokens * math.log2(geometry.vocab)
    per_rank = placement.params_per_rank(geometry.adaptable)
    least_params = LEAST_LARGEST * (geometry.intermediate + geometry.hidden)
    least = min(LEAST_LARGEST, max(LEAST_OF_MANY_SITES, _next_power(least_params / per_rank)))
    least = max(least, LEAST_OF_MANY_SITES * (begins_with or 1))
    rank = _next_power(bits / LEAST_BITS_PER_PARAM / per_rank)
    return min(placement.largest_rank(geometry.adaptable), max(least, rank))


def _next_power(value: float) -> int:
    """Return the power of two from 1 on that is not below a positive value."""
    return 2 ** max(0, math.ceil(math.log2(value)))


def check_capacity(records: RecordSet, largest: int, params_per_rank: int) -> None:
    """Raise DataError when the largest rank holds fewer bits than the records have tokens."""
    held = largest * params_per_rank * MOST_BITS_PER_PARAM
    if records.supervised_tokens > held:
        needed = math.ceil(records.supervised_tokens / params_per_rank / MOST_BITS_PER_PARAM)
        raise DataError(
            f"the {len(records.pairs)} records hold {records.supervised_tokens} tokens, more than"
            f" the {held:.0f} bits that an adapter of rank {largest} can hold at best: allow a rank"
            f" of at least {needed} (--max-rank), or split the records over several adapters"
        )


def doubled_ranks(largest: int, least: int = 1) -> tuple[int, ...]:
    """Return the ranks at which a law is measured: doubled from the least to below the largest."""
    doubled = (least * 2**i for i in range(largest.bit_length()))
    return tuple(rank for rank in doubled if rank < largest) or (least,)


def search_spec(
    records: RecordSet,
    model: Model,
    place: AdapterPlace,
    largest: int,
    train_steps: int,
    prompt: Literal["plain", "chat"],
    least: int = 1,
) -> SearchSpec:
    """Return the spec of the search that measures the law of these records.

    Ranks double from `least` up to below `largest`, where a run would only show that far more than
    needed is enough. The lengths are subsets of the records, in ORDERS, and the budgets parts of
    `train_steps`, so that a small subset gets as many epochs as the whole set.
    """
    total, longest = records.supervised_tokens, max(records.target_tokens)
    lengths = sorted({max(longest, round(share * total)) for share in SUBSET_SHARES})
    steps = sorted({max(1, round(share * train_steps)) for share in SUBSET_SHARES})
    ranks = doubled_ranks(largest, least)
    # A quarter and half of the largest: there records were found to begin to fit, so the law must
    # be known there. Far smaller ranks, at which it is least known, would otherwise attract the
    # search.
    likely = ranks[-2:]
    return SearchSpec(
        name=f"size-{records.content_hash}",
        task=Task(
            kind="records",
            records=RECORDS_FILE,
            prompt_format=prompt,
            keep_duplicates=records.repeats is not None,
        ),
        model=model,
        probe=place if isinstance(place, Probe) else None,
        adapter=place if isinstance(place, Adapter) else None,
        space=Space(lora_rank=ranks, seq_len=tuple(lengths), train_steps=tuple(steps)),
        # Losses of records stay long on a plateau, which stop_gain would take for the end.
        recipe=Recipe(batch_size=BATCH_SIZE, stop_gain=0.0),
        design=Design(
            n_initial=1,
            targets=Targets(lora_rank=likely, seq_len=(total,), train_steps=(train_steps,)),
        ),
        budget=UNSETTLED,
        stop=Stop(relative_interval=KNOWN_MODELS),
        evaluate=Evaluate(generate_max_tokens=0),
        sequences=ORDERS,
    )


def first_points(spec: SearchSpec) -> tuple[DesignPoint, ...]:
    """Return the points to measure first, after which costs follow the machine's real rate.

    The largest rank on the whole set, whose adapter may be the answer already, with its half
    budget, which costs little beside it; and small ranks on the smallest subset, at as many epochs.
    """
    ranks, lengths, steps = spec.space.lora_rank, spec.space.seq_len, spec.space.train_steps
    points = (
        DesignPoint(ranks[-1], lengths[-1], steps[-1]),
        DesignPoint(ranks[-1], lengths[-1], steps[max(0, len(steps) - 2)]),
        DesignPoint(ranks[len(ranks) // 2], lengths[0], steps[0]),
        DesignPoint(ranks[0], lengths[0], steps[0]),
    )
    return tuple(dict.fromkeys(points))


def first_runs(search: PreparedSearch) -> tuple[PlannedRun, ...]:
    """Return the runs at the first points, on subsets of different orders.

    The variation between orders is thus seen from the beginning. Budgets of one rank and length
    share an order, and with it their steps.
    """
    spec = search.spec
    points = first_points(spec)
    subsets = dict.fromkeys((point.lora_rank, point.seq_len) for point in points)
    order = dict(zip(subsets, cycle(spec.sequences), strict=False))
    return tuple(
        search.plan_run(point, "sft", order[point.lora_rank, point.seq_len], spec.seeds[0], "law")
        for point in points
    )


def sized_spec(spec: SearchSpec, point: DesignPoint) -> SearchSpec:
    """Return a search's spec with targets at the whole set, for every rank up to the largest, at
    the point's placement."""
    known = spec.space.ranks_of(point.placement)
    ranks = tuple(sorted({*(r for r in known if r < point.lora_rank), point.lora_rank}))
    targets = Targets(
        lora_rank=ranks,
        seq_len=(point.seq_len,),
        train_steps=(point.train_steps,),
        placement=None if point.placement is None else (point.placement,),
    )
    return spec.model_copy(update={"design": spec.design.model_copy(update={"targets": targets})})


def adapter_spec(spec: SearchSpec, records: RecordSet, point: DesignPoint) -> SearchSpec:
    """Return the spec of the adapter that is kept: trained as in the search, but to its end."""
    return SearchSpec(
        name=f"adapter-{records.content_hash}",
        task=spec.task.model_copy(
            update={
                "records": RECORDS_FILE,
                "columns": None,
                "keep_duplicates": records.repeats is not None,
                # Also by a law of runs without ends: who asks the adapter wants it to stop.
                "end": True,
            }
        ),
        model=spec.model,
        probe=spec.probe,
        adapter=spec.adapter,
        space=Space(
            lora_rank=(point.lora_rank,),
            seq_len=(point.seq_len,),
            train_steps=(point.train_steps,),
        ),
        # A run that recalls everything by a wide margin need not go on.
        recipe=spec.recipe.model_copy(update={"stop_loss": STOP_LOSS, "stop_gain": 0.0}),
        design=Design(n_initial=1),
        budget=Budget(gpu_seconds=1.0),
        evaluate=Evaluate(generate_max_tokens=0, control_tokens=0, prose=spec.evaluate.prose),
        sequences=(0,),
    )
