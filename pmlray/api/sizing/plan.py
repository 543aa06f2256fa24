"""Checks and decisions of `pmlray size` before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pmlray.api.records.facts import facts_for
from pmlray.api.records.prompts import (
    PLAIN_CONVERSATIONS,
    default_format,
    holds_conversations,
)
from pmlray.api.sizing.answer import SizedRank, answer_by
from pmlray.api.sizing.placement import asked_place
from pmlray.api.sizing.places import PlaceOption, compared_places, largest_ranks
from pmlray.api.sizing.records import count_tokens, tokenizer_file
from pmlray.api.sizing.search import begun_with, own_search
from pmlray.api.sizing.start import asked_start, place_of
from pmlray.api.sizing.stored_law import (
    LawAtHand,
    check_law_start,
    law_spec,
    places_of_law,
    stored_law,
)
from pmlray.api.stores import default_store
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.adapters.adapter_spec import AdapterPlace
from pmlray.config.adapters.placement import Placement as Sites
from pmlray.config.adapters.start_adapter import StartAdapter
from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.model_spec import DtypeChoice, Model
from pmlray.config.bases.models import TINY, ModelSource, require_present, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.store_folder import local_folder
from pmlray.design import CostModel
from pmlray.errors import SpecError
from pmlray.memory import RecordSource, TaskSource
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.compared import as_adapter, compared_spec, spec_at
from pmlray.study.sizing.cost import SizeCost
from pmlray.study.sizing.decide_placement import (
    Prefer,
)
from pmlray.study.sizing.request import (
    RecordSet,
    Wanted,
    adapter_spec,
    default_steps,
    search_spec,
)
from pmlray.types import DesignPoint, Observation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SizeRequest:
    """User's request; None where pmlray, or the stored law, determines the value.

    `compared`: placements of which the best is taken, in place of the one `placement`; `budget`:
    gpu_seconds of the law's search.
    """

    records: RecordSource
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
    compared: tuple[str, ...] = ()
    prefer: Prefer = "parameters"
    budget: float | None = None


@dataclass(frozen=True)
class SizePlan:
    """Sizing request with every open choice made, but for the place where several are compared.

    `search` measures the law, at each of the `options`. Its budget is set after its first runs,
    from their cost, unless the request gives one.
    """

    request: SizeRequest
    records: RecordSet
    search: PreparedSearch
    options: tuple[PlaceOption, ...]
    stored: LawAtHand | None
    out: Path

    @property
    def start(self) -> StartAdapter | None:
        """The adapter that every run begins with; None where runs begin from scratch."""
        return self.search.start

    @property
    def points(self) -> tuple[DesignPoint, ...]:
        """The whole set with the largest planned rank, at each place."""
        return tuple(option.point for option in self.options)

    @property
    def dearest(self) -> PlaceOption:
        """The place whose adapter takes longest to train, as far as sizes tell."""
        cost = self.cost_by(())
        return max(self.options, key=lambda option: cost.predict(option.point))

    def to_json(self, cost: SizeCost) -> dict[str, Any]:
        """Return the plan and its cost as JSON types."""
        space, first = self.search.spec.space, self.options[0]
        if len(self.options) == 1:
            where = {**first.to_json(), "lora_ranks": list(space.ranks_of(first.name))}
        else:
            rows = [self._option_json(option, cost) for option in self.options]
            where = {"placements": rows, "prefer": self.request.prefer}
        return {
            "records": str(self.request.records),
            "n_records": len(self.records.pairs),
            "n_duplicates": self.records.n_duplicates,
            "supervised_tokens": self.records.supervised_tokens,
            "model": first.training.source.identity,
            "prompt_format": first.training.spec.task.prompt_format,
            **where,
            "from_adapter": None if self.start is None else self.start.facts(),
            "recall": self.request.wanted.recall,
            "confidence": self.request.wanted.confidence,
            "law": None if self.stored is None else str(self.stored.store),
            "seq_lens": list(space.seq_len),
            "train_steps": first.point.train_steps,
            "epochs": round(
                first.point.train_steps
                * min(1.0, first.training.spec.recipe.batch_size / self.records.n_shown),
                1,
            ),
            **cost.to_json(),
            "device": "GPU" if self.request.profile.gpus_per_pack else "CPU core",
            "answer": None if self.stored is None else self.answer(self.stored).answer,
            "out": str(self.out),
        }

    def _option_json(self, option: PlaceOption, cost: SizeCost) -> dict[str, Any]:
        return {
            "name": option.name,
            **option.to_json(),
            "lora_ranks": list(self.search.spec.space.ranks_of(option.name)),
            "predicted_training_gpu_seconds": cost.by_place[option.name],
        }

    def answer(self, law: LawAtHand) -> SizedRank:
        """Return the place and rank by a law; DataError when no allowed rank is enough."""
        return answer_by(self, law)

    def cost_by(
        self, observations: Iterable[Observation], option: PlaceOption | None = None
    ) -> CostModel:
        """Return the cost model of the options' points at the rate of measured runs.

        option: by the runs that share its frozen layers, where there are any: places differ in
        speed by more than their sizes tell.
        """
        gpu, known = self.request.profile.gpus_per_pack > 0, tuple(observations)
        first = self.options[0]
        cost = first_cost(self.search if first.name is not None else first.training, gpu)
        if option is not None:
            kind = cost.pack_kind(option.point)
            known = tuple(o for o in known if cost.pack_kind(o.point) == kind) or known
        return cost.learn((o.point, o.charged_steps, o.gpu_seconds) for o in known)


def prepare_size(request: SizeRequest) -> SizePlan:
    """Check the request and fill in what it leaves open, before anything starts.

    Raises SpecError, DataError, ModelError or StoreError, each with its remedy.
    """
    if request.budget is not None and not request.budget > 0.0:
        raise SpecError(f"--budget is {request.budget:g}; it is gpu_seconds above 0, such as 600")
    if request.out is not None:
        local_folder(request.out, "--out")
    revision = request.revision or begun_with(request)
    source = _present(request.model, resolve_model(request.model, revision))
    request = replace(request, revision=source.revision or request.revision)
    base = None if request.law is None else law_spec(request, source)
    prompt_format = _prompt_format(request, base, source)
    tokenizer = read_tokenizer(tokenizer_file(request, source))
    model = Model(id=request.model, revision=request.revision)
    facts = facts_for(request.records, model, source, tokenizer, prompt_format)
    records = count_tokens(request, facts, source, tokenizer, prompt_format)
    geometry = source.geometry
    start = asked_start(request, model, source)
    if request.law is not None and base is not None:
        check_law_start(request.law, base, start)
    places = _places(request, base, start, geometry)
    if request.prefer != "parameters" and len(places) == 1:
        raise SpecError(
            f"--prefer {request.prefer} chooses among placements: give --placement auto, or several"
        )
    largest = largest_ranks(request, records, places, geometry, start)
    task = TaskSource("records", 0, pairs=records.pairs, repeats=records.repeats)
    own: Path | None = None
    if base is None:
        steps = request.train_steps or default_steps(records.n_shown)

        def build(model: Model) -> SearchSpec:
            if None in places:
                place, most = places[None][0], largest[None]
                least = 1 if start is None else start.lora_rank
                return search_spec(records, model, place, most, steps, prompt_format, least)
            named = {str(n): (as_adapter(p), largest[n]) for n, (p, _) in places.items()}
            return compared_spec(records, model, named, steps, prompt_format)

        base, own = own_search(request, build)
    else:
        steps = request.train_steps or base.space.train_steps[-1]
    options: list[PlaceOption] = []
    for name, (_, sites) in places.items():
        point = DesignPoint(largest[name], records.supervised_tokens, steps, name)
        alone = adapter_spec(spec_at(base, name), records, replace(point, placement=None))
        limit = sites.largest_rank(geometry.adaptable)
        options.append(
            PlaceOption(
                *(name, PreparedSearch(alone, source, task, start=start), point),
                limit if request.max_rank is None else min(request.max_rank, limit),
            )
        )
    search = PreparedSearch(base, source, task, start=start)
    stored = None if request.law is None else stored_law(request.law, base, options)
    out = own or request.out or default_store(options[0].training.spec.search_id, request.profile)
    plan = SizePlan(request, records, search, tuple(options), stored, out.absolute())
    if stored is not None:
        plan.answer(stored)
    return plan


def _prompt_format(
    request: SizeRequest, base: SearchSpec | None, source: ModelSource
) -> Literal["plain", "chat"]:
    """Return how the records are asked; warns of conversations that have to be plain text.

    base: the spec of a stored law, which has the format of its runs.
    """
    if request.prompt_format is not None:
        return request.prompt_format
    if base is not None and base.task.prompt_format == "chat":
        return "chat"
    found = default_format(request.records, request.model, source) if base is None else "plain"
    if found == "plain" and holds_conversations(request.records):
        log.warning(PLAIN_CONVERSATIONS)
    return found


def _places(
    request: SizeRequest,
    base: SearchSpec | None,
    start: StartAdapter | None,
    geometry: Geometry,
) -> Mapping[str | None, tuple[AdapterPlace, Sites]]:
    """Return where the adapter may sit, by the name in the law's search, None where that has one
    place. base: the spec of a stored law; start: the adapter to begin with."""
    if start is not None:
        return {None: (place_of(start), start.placement)}
    if base is not None:
        return places_of_law(request, base, geometry)
    if request.compared:
        return {**compared_places(request, geometry)}
    place = asked_place(request, geometry)
    return {None: (place, place.resolve(geometry.n_layers, geometry.modules))}


def _present(model: str, source: ModelSource) -> ModelSource:
    """Return an available base model; the tiny random one is created, others must be present."""
    if model == TINY and source.folder is None:
        from pmlray.engine.model.pull import pull_model

        pull_model(TINY)
        return resolve_model(model, None)
    require_present(model, source)
    return source
