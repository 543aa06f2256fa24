"""`pmlray.size`: the smallest rank that holds a set of records, trained and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pmlray.api.adapter_memory import check_memory
from pmlray.api.environment.process import own_signals, train_extra
from pmlray.api.records.source import Records, record_source
from pmlray.config import ClusterProfile
from pmlray.config.bases.model_spec import DtypeChoice
from pmlray.config.load import read_profile
from pmlray.notebook_html import facts_html
from pmlray.study.sizing.decide_placement import Prefer
from pmlray.study.sizing.request import Wanted

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizePlan
    from pmlray.api.sizing.sized_adapter import SizedAdapter
    from pmlray.study.sizing.cost import SizeCost


@dataclass(frozen=True, repr=False)
class SizingPlan:
    """Plan of a sizing with its predicted cost in gpu_seconds; nothing was trained.

    Example:
        >>> facts = [{"query": f"Room {n}:", "target": f" {7 * n + 1000}"} for n in range(8)]
        >>> planned = size(facts, "tiny-random-llama", steps=200, dry_run=True)  # steps on Ray
        >>> planned.cost.least <= planned.cost.promised <= planned.cost.most
        True
    """

    plan: SizePlan
    cost: SizeCost

    def __repr__(self) -> str:
        n, cost = len(self.plan.records.pairs), self.cost
        return f"SizingPlan({n} records, about {cost.promised:.3g} gpu_seconds, {cost.rates})"

    def _repr_html_(self) -> str:
        cost = self.cost
        told = {
            "model": self.plan.search.spec.model.id,
            "records": len(self.plan.records.pairs),
            "gpu_seconds": f"{cost.promised:.3g} ({cost.least:.3g} to {cost.most:.3g}),"
            f" rates {cost.rates}",
            "out": self.plan.out,
        }
        return facts_html("sizing, planned", told)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only, as `pmlray size --dry-run --json` prints them."""
        return self.plan.to_json(self.cost)


def size(
    records: Records,
    model: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    recall: float = 0.99,
    confidence: float = 0.9,
    law: str | Path | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    max_rank: int | None = None,
    placement: str | Sequence[str] | None = None,
    prefer: Prefer = "parameters",
    budget: float | None = None,
    layer: int | None = None,
    layers: str | None = None,
    alpha: float | str | None = None,
    rslora: bool = False,
    from_adapter: str | Path | None = None,
    prompt_format: Literal["plain", "chat"] | None = None,
    revision: str | None = None,
    dtype: DtypeChoice = "auto",
    profile: ClusterProfile | str | Path | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    keep_duplicates: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] | None = None,
) -> SizedAdapter | SizingPlan:
    """Find the smallest rank that holds these records, train that adapter and check it.

    Args:
        records: file or folder of records with a query and a target each, or rows: dicts, a
            `datasets.Dataset` or a pandas frame.
        model: base model, a pulled name, a hub id or a folder.
        columns: names of the columns of `query` and `target`; by default a known layout's.
        split: of a data set, of which `records` is the id on the hub or the folder.
        recall: share of the records to recall word for word.
        confidence: one-sided confidence that the rank reaches it.
        law: store of an earlier records search, whose law is used.
        out: folder of the results, continued when given again.
        steps: optimiser steps; by default 40 epochs.
        max_rank: largest rank allowed.
        placement: adapted modules; `auto` or several, of which the best is found and taken.
        prefer: what is least at the best of several placements.
        budget: gpu_seconds of the law's search; by default as many as it takes.
        layer, layers, alpha, rslora: as options of `pmlray size`.
        from_adapter: folder of an adapter that PEFT or pmlray saved, which every run begins with.
        prompt_format, revision, dtype: as options of `pmlray size`.
        profile, tracking_uri, address: as of `Search.load`.
        keep_duplicates: train on a record as often as it stands in the file; it counts once.
        dry_run: only return the plan and its cost, timed by a few steps where this machine trains.
        say: called with one line per stage; by default none is shown.

    Returns:
        The adapter with its card and its decoded records, or the plan of a dry run.

    Raises:
        SpecError, DataError, ModelError, RunError: the message says what to correct.

    Example:
        >>> facts = [{"query": f"Room {n}:", "target": f" {7 * n + 1000}"} for n in range(8)]
        >>> found = size(facts, "tiny-random-llama", recall=0.75, steps=200, out="runs/rooms")
        >>> found.reached, found.adapter_folder.name       # trained on Ray
        (True, 'adapter')
    """
    from pmlray.api.sizing.places import split_placements
    from pmlray.api.sizing.plan import SizeRequest, prepare_size

    given = [placement] if isinstance(placement, str) else list(placement or ())
    one, compared = split_placements(given)
    settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
    source = record_source(records, columns, split)
    plan = prepare_size(
        SizeRequest(
            *(source, model, revision, dtype, Wanted(recall, confidence)),
            None if law is None else Path(law),
            None if out is None else Path(out),
            *(one, layer, prompt_format, steps, max_rank, settings, keep_duplicates),
            *(layers, None if alpha is None else f"{alpha}", rslora),
            None if from_adapter is None else Path(from_adapter),
            *(compared, prefer, budget),
        )
    )
    if dry_run:
        from pmlray.api.sizing.forecast import forecast

        return SizingPlan(plan, forecast(plan, address, say or _silent))
    return carry_out(plan, address, tracking_uri, say or _silent)


def carry_out(
    plan: SizePlan, address: str | None, tracking_uri: str | None, say: Callable[[str], None]
) -> SizedAdapter:
    """Carry out a plan, or continue it."""
    from pmlray.api.sizing.forecast import check_affordable
    from pmlray.api.tracking import tracking_uri_for

    # An address that MLflow does not take is told before anything is timed.
    tracking_uri_for(plan.out, plan.request.profile, tracking_uri)
    for option in plan.options:
        check_memory(option.training, [option.own_point], plan.request.profile, address)
    check_affordable(plan, address, say)
    with train_extra():
        import pmlray.backends.ray.train
        import pmlray.engine.measure  # noqa: F401
    from pmlray.api.live_progress import live_progress
    from pmlray.api.sizing.run import run_size

    with own_signals():
        return run_size(plan, address, tracking_uri, say, live_progress)


def _silent(_line: str) -> None:
    """Discard progress lines."""
