"""Search prepared to run: its files are read, its model is resolved, and both are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from pmlray.config.adapters.place_in_base import check_places
from pmlray.config.adapters.placement import Placement
from pmlray.config.adapters.start_adapter import START_FILES, StartAdapter, read_start
from pmlray.config.bases.dtype import settle
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource, resolve_model
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import Where, load_search, load_spec, places, read_text
from pmlray.config.record_facts import encode_queries, local_tokenizer, read_facts
from pmlray.config.run_key import run_key
from pmlray.config.search_spec import SearchSpec
from pmlray.errors import DataError, SpecError
from pmlray.memory import Facts, LostText, Query, RecordSource, TaskSource, build_memory
from pmlray.types import DesignPoint, Method, Phase, PlannedRun
from pmlray.version import here_or_shipped

CHAT_TEMPLATE_TOKENS = 64
# Returns the model that the store of a search was begun with, by the search's id; None where there
# is no such store yet.
KeptModel = Callable[[str], Model | None]


@dataclass(frozen=True)
class PreparedSearch:
    """A valid spec with its base model's source and the content of its task's files.

    `facts`: of a records task, with their places in its file. `start`: the adapter that every run
    begins with; None: each begins with factors of its own.
    """

    spec: SearchSpec
    source: ModelSource
    task: TaskSource
    facts: Facts | None = None
    start: StartAdapter | None = None

    @property
    def duplicates(self) -> str:
        """A sentence on the records that repeat another one; empty where there are none."""
        if self.facts is None:
            return ""
        return self.facts.describe_duplicates(self.spec.task.keep_duplicates)

    @property
    def lost_texts(self) -> tuple[LostText, ...]:
        """Targets of a records task that their tokens do not give back."""
        return () if self.facts is None else self.facts.all_lost

    def counts(self) -> dict[str, int]:
        """Return n_records, the different ones, and n_duplicates; empty without a records file."""
        if self.facts is None:
            return {}
        return {"n_records": len(self.facts.rows), "n_duplicates": self.facts.n_duplicates}

    def settled(self, gpu: bool, kept: Model | None = None) -> PreparedSearch:
        """Return the search with its base's dtype resolved; see `settle`."""
        model = settle(self.spec.model, gpu, kept)
        return replace(self, spec=self.spec.model_copy(update={"model": model}))

    @cached_property
    def placements(self) -> Mapping[str | None, Placement]:
        """Sites of the adapters in the base, by the placement's name; see `SearchSpec.places`."""
        if self.start is not None:
            return {None: self.start.placement}
        geometry = self.source.geometry
        places = self.spec.places.items()
        return {n: place.resolve(geometry.n_layers, geometry.modules) for n, place in places}

    def placement_of(self, point: DesignPoint) -> Placement:
        """Return the sites of a point's adapter; SpecError where the search has no such
        placement."""
        try:
            return self.placements[point.placement]
        except KeyError:
            raise SpecError(
                f"{self.spec.search_id} has no placement named {point.placement}; it has"
                f" {', '.join(map(str, self.placements))}"
            ) from None

    def params_per_rank_of(self, point: DesignPoint) -> int:
        """Return the number of trainable parameters of a point's adapter per unit of its rank."""
        return self.placement_of(point).params_per_rank(self.source.geometry.adaptable)

    def place_name(self, point: DesignPoint) -> str:
        """Return where a point's adapter sits: its placement's name, else in words."""
        return point.placement or self.describe_place()

    @property
    def placement(self) -> Placement:
        """Sites of the adapters of a search with one place; SpecError where it has several."""
        if self.start is not None:
            return self.start.placement
        geometry = self.source.geometry
        return self.spec.place.resolve(geometry.n_layers, geometry.modules)

    def describe_place(self, placement: str | None = None) -> str:
        """Return where the adapters of a placement sit, by its name, in words."""
        if self.start is not None:
            return self.start.describe()
        return self.spec.places[placement].describe()

    @property
    def params_per_rank(self) -> int:
        """Number of trainable parameters of an adapter per unit of its rank, of a search with one
        place."""
        return self.placement.params_per_rank(self.source.geometry.adaptable)

    def plan_run(
        self,
        point: DesignPoint,
        method: Method,
        sequence_id: int,
        seed: int,
        phase: Phase,
        learning_rate: float | None = None,
    ) -> PlannedRun:
        """Return a run with its run_key: the hash of everything that determines its result.

        learning_rate: peak rate in place of the recipe's.
        """
        key = run_key(self, point, method, sequence_id, seed, phase, learning_rate)
        if learning_rate is None and self.spec.recipe.learning_rate == "auto":
            learning_rate = self.peak_rate_at(point)
        return PlannedRun(point, method, sequence_id, seed, phase, key, learning_rate)

    def peak_rate_at(self, point: DesignPoint) -> float:
        """Return the recipe's peak learning rate where a point's adapter sits."""
        rank, placement = point.lora_rank, self.placement_of(point)
        return self.spec.recipe.peak_rate(
            rank,
            len(placement.sites),
            placement.scale(rank),
            # Every other task is a set of records, of which a step sees some.
            many_records=self.spec.task.kind != "long_context",
        )

    def peak_rate(self, run: PlannedRun) -> float:
        """Return the peak learning rate of a run: its own, or the recipe's where it sits."""
        return self.peak_rate_at(run.point) if run.learning_rate is None else run.learning_rate


def prepare_search(
    path: Path, overrides: Sequence[str] = (), kept: KeptModel | None = None
) -> PreparedSearch:
    """Read, validate and resolve a search file; every error comes before anything starts.

    A branch or tag as the revision of a hub model becomes its commit in the spec. A hub model
    without a revision is at the commit that its store was begun with, which `kept` tells by the id
    of the search, else at that of the hub's default branch now.

    Token counts are checked against the data and the model's context where the tokenizer is on
    this machine; for a hub model, when the search starts.
    """
    path = here_or_shipped(path)
    spec = load_search(path, overrides)
    return _prepare(spec, path, places(path, overrides), kept)


def prepare_spec(spec: SearchSpec, folder: Path, kept: KeptModel | None = None) -> PreparedSearch:
    """Prepare a spec without a file; its task's files are below `folder`. See prepare_search."""
    path = folder / spec.name
    return _prepare(spec, path, lambda key: str(path), kept)


def prepare_comparison(
    path: Path, overrides: Sequence[str] = (), kept: KeptModel | None = None
) -> tuple[CompareSpec, PreparedSearch]:
    """Prepare a comparison's file; return its spec and the search that its runs belong to. See
    prepare_search."""
    path = here_or_shipped(path)
    spec = load_spec(CompareSpec, path, overrides)
    prepared = _prepare(spec.search_spec(), path, places(path, overrides), kept)
    return spec.model_copy(update={"model": prepared.spec.model}), prepared


def _prepare(
    spec: SearchSpec, path: Path, where: Where, kept: KeptModel | None = None
) -> PreparedSearch:
    begun = None if kept is None else kept(spec.search_id)
    source = resolve_model(spec.model.id, spec.model.begun_at(begun))
    spec = spec.model_copy(update={"model": spec.model.at(source.revision)})
    start = _read_start(spec, path, source)
    check_places(spec, source.geometry, where, start)
    tokenizer = local_tokenizer(source)
    facts = _read_facts(spec, path, tokenizer)
    prepared = PreparedSearch(spec, source, _read_task(spec, path, facts), facts, start)
    _check_lengths(prepared, path, tokenizer)
    return prepared


def _read_start(spec: SearchSpec, path: Path, source: ModelSource) -> StartAdapter | None:
    """Return the adapter that every run begins with; None where there is none."""
    if spec.adapter is None or (name := spec.adapter.from_adapter) is None:
        return None
    for file in START_FILES:
        file_beside(path, "adapter.from_adapter", f"{name}/{file}")
    return read_start(path.parent / name, spec.model, source)


def _read_facts(spec: SearchSpec, path: Path, tokenizer: Tokenizer | None) -> Facts | None:
    file = file_beside(path, "task.records", spec.task.records) if spec.task.records else None
    if file is None or spec.task.kind != "records":
        return None
    source = RecordSource(file, spec.task.record_columns)
    return read_facts(source, tokenizer, spec.task.prompt_format)


def _read_task(spec: SearchSpec, path: Path, facts: Facts | None) -> TaskSource:
    task, text = spec.task, None
    if (name := task.text) is not None:
        file = file_beside(path, "task.text", name)
        if task.kind == "long_context" and task.random_ratio < 100:
            text = read_text(file)
    return TaskSource(
        kind=task.kind,
        data_seed=task.data_seed,
        random_ratio=task.random_ratio,
        key_prompt=task.key_prompt,
        text=text,
        pairs=None if facts is None else facts.pairs,
        repeats=facts.repeats if facts is not None and task.keep_duplicates else None,
    )


def file_beside(path: Path, key: str, name: str) -> Path:
    """Return the file or folder that `key` of the search in `path` names.

    SpecError where it is outside that search's folder: an untrusted search could otherwise name any
    file of this machine.
    """
    file = path.parent / name
    try:
        inside = file.resolve().is_relative_to(path.parent.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"{path}: {key}: {name!r} names no file ({error})") from error
    if Path(name).is_absolute() or ".." in Path(name).parts or not inside:
        raise SpecError(
            f"{path}: {key}: {name!r} leads out of the search's folder; put the file there"
        )
    return file


def _check_lengths(prepared: PreparedSearch, path: Path, tokenizer: Tokenizer | None) -> None:
    spec, context = prepared.spec, prepared.source.geometry.context
    longest = max(spec.space.seq_len)
    if spec.task.kind == "long_context" and longest >= context:
        raise DataError(
            f"{path}: space.seq_len goes up to {longest}, but {spec.model.id} reads at most"
            f" {context} tokens, prompt included"
        )
    if tokenizer is None:
        return
    render = partial(_query_ids, tokenizer, spec.task.prompt_format)
    template = CHAT_TEMPLATE_TOKENS if spec.task.prompt_format == "chat" else 0
    # All sequences of long_context have equally many tokens, so one is enough.
    sequences = spec.sequences[:1] if spec.task.kind == "long_context" else spec.sequences
    for sequence_id in sequences:
        memory = build_memory(prepared.task, sequence_id, longest, tokenizer, render)
        for record in memory.records:
            needed = len(record.prompt_ids) + template + len(record.target_ids)
            needed += int(spec.task.end)
            if needed > context:
                raise DataError(
                    f"{path}: a record needs {needed} tokens with its prompt, but {spec.model.id}"
                    f" reads at most {context}; shorten space.seq_len or the record"
                )


def _query_ids(
    tokenizer: Tokenizer, prompt_format: Literal["plain", "chat"], query: Query
) -> list[int]:
    return list(encode_queries(tokenizer, prompt_format, [query])[0])
