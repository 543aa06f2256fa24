"""Checks and decisions of `pmlray size` before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from pmlray.api.record_facts import facts_for
from pmlray.api.sizing.placement import asked_place
from pmlray.api.sizing.search import own_search
from pmlray.api.sizing.start import asked_start, place_of
from pmlray.api.sizing.stored_law import check_law_start, law_spec
from pmlray.api.stores import default_store, open_store
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.hub import fetched_file
from pmlray.config.bases.models import TINY, ModelSource, require_present, resolve_model
from pmlray.config.model_spec import DtypeChoice, Model
from pmlray.config.prepared_search import CHAT_TEMPLATE_TOKENS, PreparedSearch
from pmlray.design import CostModel
from pmlray.errors import DataError, ModelError, SpecError
from pmlray.law import LawSummary
from pmlray.memory import Facts, TaskSource, encode_texts
from pmlray.study.findings.result import fit_observations
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.card import answer
from pmlray.study.sizing.choose_rank import RankChoice, choose_rank
from pmlray.study.sizing.cost import SizeCost
from pmlray.study.sizing.request import (
    RecordSet,
    Wanted,
    adapter_spec,
    check_capacity,
    default_steps,
    largest_rank,
    sized_spec,
)
from pmlray.types import DesignPoint, Observation


@dataclass(frozen=True)
class SizeRequest:
    """User's request; None where pmlray, or the stored law, determines the value."""

    records: Path
    model: str
    revision: str | None
    dtype: DtypeChoice
    wanted: Wanted
    law: Path | None
    out: Path | None
    placement: str | None
    layer: int | None
    prompt_format: Literal["plain", "chat"] | None
    train_steps: int | None
    max_rank: int | None
    profile: ClusterProfile
    keep_duplicates: bool = False
    layers: str | None = None
    alpha: str | None = None
    rslora: bool = False
    from_adapter: Path | None = None


@dataclass(frozen=True)
class LawAtHand:
    """Law with the records' own size as its target, and the runs that it was fitted to."""

    store: Path
    summary: LawSummary
    observations: tuple[Observation, ...]


@dataclass(frozen=True)
class SizePlan:
    """Sizing request with every open choice made.

    `search` measures the law, `training` trains the adapter, `largest` is the point of l tokens and
    T steps with the largest rank that the search is planned for, `limit` the largest rank allowed.
    The search's budget is set after its first runs, from their cost.
    """

    request: SizeRequest
    records: RecordSet
    search: PreparedSearch
    training: PreparedSearch
    stored: LawAtHand | None
    largest: DesignPoint
    limit: int
    out: Path

    def to_json(self, cost: SizeCost) -> dict[str, Any]:
        """Return the plan and its cost as JSON types."""
        space = self.search.spec.space
        return {
            "records": str(self.request.records),
            "n_records": len(self.records.pairs),
            "n_duplicates": self.records.n_duplicates,
            "supervised_tokens": self.records.supervised_tokens,
            "model": self.training.source.identity,
            **_placed(self.training),
            "from_adapter": None if self.training.start is None else self.training.start.facts(),
            "recall": self.request.wanted.recall,
            "confidence": self.request.wanted.confidence,
            "law": None if self.stored is None else str(self.stored.store),
            "lora_ranks": list(space.lora_rank),
            "seq_lens": list(space.seq_len),
            "train_steps": self.largest.train_steps,
            "largest_rank": self.limit,
            **cost.to_json(),
            "device": "GPU" if self.request.profile.gpus_per_pack else "CPU core",
            "answer": None if self.stored is None else self.answer(self.stored)[1],
            "out": str(self.out),
        }

    @property
    def least(self) -> int:
        """Smallest rank allowed: 1, or that of the adapter to begin with."""
        return 1 if self.training.start is None else self.training.start.lora_rank

    def answer(self, law: LawAtHand) -> tuple[RankChoice, dict[str, Any]]:
        """Return the rank by a law, and the answer as JSON.

        DataError when no allowed rank is enough.
        """
        wanted, training = self.request.wanted, self.training
        choice = choose_rank(
            *(law.summary, law.observations, wanted, self.largest),
            self.records.tokens_per_record,
            self.limit,
            self.least,
        )
        cost = self.cost_by(law.observations)
        seconds = cost.predict(choice.point)
        return choice, answer(choice, wanted, law.summary, training.params_per_rank, seconds)

    def cost_by(self, observations: Iterable[Observation]) -> CostModel:
        """Return the cost model at the rate of measured runs."""
        return first_cost(self.training, self.request.profile.gpus_per_pack > 0).learn(
            (o.point, o.charged_steps, o.gpu_seconds) for o in observations
        )


def prepare_size(request: SizeRequest) -> SizePlan:
    """Check the request and fill in what it leaves open, before anything starts.

    Raises SpecError, DataError, ModelError or StoreError, each with its remedy.
    """
    source = _present(request.model, resolve_model(request.model, request.revision))
    request = replace(request, revision=source.revision or request.revision)
    base = None if request.law is None else law_spec(request, source)
    prompt_format = request.prompt_format or (base.task.prompt_format if base else "plain")
    tokenizer = read_tokenizer(_tokenizer_file(request, source))
    model = Model(id=request.model, revision=request.revision)
    facts = facts_for(request.records, model, source, tokenizer, prompt_format)
    records = _count_tokens(request, facts, source, tokenizer, prompt_format)
    geometry = source.geometry
    start = asked_start(request, model, source)
    if request.law is not None and base is not None:
        check_law_start(request.law, base, start)
    if start is None:
        place = base.place if base else asked_place(request, geometry)
        placement = place.resolve(geometry.n_layers, geometry.modules)
    else:
        place, placement = place_of(start), start.placement
    begins_with = None if start is None else start.lora_rank
    largest = request.max_rank or largest_rank(records, geometry, placement, begins_with)
    if start is not None and largest < start.lora_rank:
        raise SpecError(
            f"--max-rank is {largest}, but the adapter to begin with has rank {start.lora_rank}: a"
            " smaller rank would leave a part of it out"
        )
    if (why := placement.rank_beyond(largest, geometry.adaptable)) is not None:
        raise SpecError(f"--max-rank is {largest}, but {why}")
    check_capacity(records, largest, placement.params_per_rank(geometry.adaptable))
    task = TaskSource("records", 0, pairs=records.pairs, repeats=records.repeats)
    own: Path | None = None
    if base is None:
        steps = request.train_steps or default_steps(records.n_shown)
        base, own = own_search(
            request, records, source, task, place, largest, steps, prompt_format,
            begins_with or 1,
        )  # fmt: skip
    else:
        steps = request.train_steps or base.space.train_steps[-1]
    point = DesignPoint(largest, records.supervised_tokens, steps)
    training = PreparedSearch(adapter_spec(base, records, point), source, task, start=start)
    search = PreparedSearch(base, source, task, start=start)
    stored = None if request.law is None else _stored_law(request.law, search.spec, point)
    out = own or request.out or default_store(training, request.profile)
    limit = request.max_rank or placement.largest_rank(geometry.adaptable)
    plan = SizePlan(request, records, search, training, stored, point, limit, out.absolute())
    if stored is not None:
        plan.answer(stored)
    return plan


def _present(model: str, source: ModelSource) -> ModelSource:
    """Return an available base model; the tiny random one is created, others must be present."""
    if model == TINY and source.folder is None:
        from pmlray.engine.model.pull import pull_model

        pull_model(TINY)
        return resolve_model(model, None)
    require_present(model, source)
    return source


def _placed(search: PreparedSearch) -> dict[str, Any]:
    """Return where the adapters of a search sit, as JSON: a probe as it is, or PEFT's terms."""
    spec = search.spec
    if spec.probe is not None:
        said: dict[str, Any] = {"probe": spec.probe.model_dump()}
    else:
        said = {"adapter": search.placement.to_json()}
    return {**said, "placement": search.describe_place(), "params_per_rank": search.params_per_rank}


def _count_tokens(
    request: SizeRequest,
    facts: Facts,
    source: ModelSource,
    tokenizer: Tokenizer,
    prompt_format: Literal["plain", "chat"],
) -> RecordSet:
    targets = encode_texts(tokenizer, [row.target for row in facts.rows])
    queries = encode_texts(tokenizer, [row.query for row in facts.rows])
    template = CHAT_TEMPLATE_TOKENS if prompt_format == "chat" else 0
    for row, query, target in zip(facts.rows, queries, targets, strict=True):
        needed = len(query) + template + len(target)
        if needed > source.geometry.context:
            raise DataError(
                f"{request.records}, {row.place}: the record needs {needed} tokens with its prompt,"
                f" but {request.model} reads at most {source.geometry.context}; shorten it"
            )
    return RecordSet(
        facts.pairs,
        tuple(len(ids) for ids in targets),
        tuple(len(ids) + template for ids in queries),
        facts.n_duplicates,
        facts.repeats if request.keep_duplicates else None,
    )


def _tokenizer_file(request: SizeRequest, source: ModelSource) -> Path:
    if source.folder is not None:
        file = source.folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{source.folder} holds no tokenizer.json; save the model's fast one")
        return file
    assert source.revision is not None
    return fetched_file(request.model, "tokenizer.json", source.revision)


def _stored_law(store: Path, spec: SearchSpec, point: DesignPoint) -> LawAtHand:
    observations = open_store(store.absolute())[1].observations()
    summary = fit_observations(sized_spec(spec, point), observations)
    if summary is None:
        raise SpecError(
            f"--law {store}: its {len(observations)} runs are too few for a law; continue its"
            " search, or leave --law out"
        )
    return LawAtHand(store, summary, observations)
