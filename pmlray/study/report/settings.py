"""Settings and facts of a search that a reader needs to repeat it, as a report lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmlray.config.space_spec import Space
from pmlray.study.findings.about import base_name
from pmlray.study.findings.placed_law import params_per_rank
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.tables import number, percent

# Most rates that are listed one by one.
MOST_RATES = 12
_FACT_NAMES = {
    "machine": "Machine",
    "versions": "Versions",
    "wall_seconds": "Wall time, s",
    "training_share": "Share of wall time inside training",
    "tracking_uri": "Tracking",
    "store": "Store",
}


def settings_list(result: SearchResult, facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """List the settings that determine the result, as (name, value)."""
    spec, law = result.spec, result.law
    seen: Mapping[str, Any] = result.observations[-1].provenance if result.observations else {}
    unit = seen.get("gpu_seconds_unit")
    items: list[tuple[str, Any]] = [
        ("Model", base_name(spec.model)),
        ("Base weights", seen.get("model")),
        ("dtype of the base", _base_dtype(result)),
        ("Task", _settings(spec.task.model_dump(exclude_none=True))),
        ("Adapters at", spec.describe_places()),
        ("Adapter parameters a rank", _params_per_rank(result, seen)),
        ("Space", _settings(spec.space.model_dump(exclude={"placement"}) | _own_ranks(spec.space))),
        ("Recipe", _settings(spec.recipe.model_dump(exclude={"schedule", "learning_rate"}))),
        ("Peak learning rates", _rates(result)),
        ("Schedule", spec.recipe.schedule),
        ("Sequences", _join(spec.sequences)),
        ("Seeds", _join(spec.seeds)),
        ("Design", _settings(spec.design.model_dump(exclude={"targets"}))),
        ("Law forms tried", _join(spec.law.forms)),
    ]
    if law is not None:
        fit = law.fit
        items += [
            ("Law form", fit.law.form),
            (
                "Fit",
                "forms, sizes of the noise and drift of the exponents by their evidence; intervals"
                f" by {law.average_samples.sigma.size} samples of what is believed",
            ),
            ("Points", f"{fit.n_obs} fitted, {fit.n_censored} set aside (censored)"),
        ]
    if spec.memft is not None:
        items.append(("MemFT", _settings(spec.memft.model_dump())))
    items.append(("Unit of gpu_seconds", f"{unit} seconds inside training loops" if unit else None))
    known = {"versions": seen.get("versions"), "machine": seen.get("device_name")} | dict(facts)
    return (*_said(items), *fact_items(known))


def _rates(result: SearchResult) -> str:
    """Return the peak rates of the runs, or the recipe's where they do not tell."""
    told = sorted({o.learning_rate for o in result.observations if o.learning_rate is not None})
    asked, shown = result.spec.recipe.learning_rate, _join(told)
    if len(told) > MOST_RATES:
        shown = f"{len(told)} rates from {told[0]:g} to {told[-1]:g}"
    return f"{asked}: {shown}" if told and asked == "auto" else shown or f"{asked}"


def _params_per_rank(result: SearchResult, seen: Mapping[str, Any]) -> Any:
    """Return the parameters of a rank as recorded, at each placement where there are several."""
    if not result.placements:
        return seen.get("adapter_params_per_rank")
    of = {o.point.placement: params_per_rank(result.spec, o) for o in result.observations}
    return {name: number(of[name]) for name in result.placements}


def _own_ranks(space: Space) -> dict[str, tuple[int, ...]]:
    """Return the ranks of the placements that do not have those of the space."""
    names = (name for name in space.placements if space.ranks_of(name) != space.lora_rank)
    return {f"lora_rank at {name}": space.ranks_of(name) for name in names}


def _base_dtype(result: SearchResult) -> str:
    """Return the weights' dtype, and the number of runs that computed in float32 instead."""
    dtype, runs = result.spec.model.base_dtype, result.observations
    others = sum(o.provenance.get("base_computed_in", dtype) != dtype for o in runs)
    where = f", computed in float32 in {others} of {len(runs)} runs" if others else ""
    return f"{dtype}{where} (adapters and optimiser state: float32)"


def fact_items(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """List the facts of a run beside its result, as (name, value), the known names first."""
    items: list[tuple[str, Any]] = []
    for name in (*_FACT_NAMES, *sorted(set(facts) - set(_FACT_NAMES))):
        value = facts.get(name)
        if name == "training_share" and isinstance(value, float):
            value = percent(value)
        items.append((_FACT_NAMES.get(name, name), value))
    return _said(items)


def _said(items: Sequence[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(value)) for name, value in items if value not in (None, "", {}))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _settings(value)
    return number(value) if isinstance(value, int | float) else str(value)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_join(v)}" for k, v in values.items())


def _join(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
