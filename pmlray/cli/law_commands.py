"""`pmlray fit` and `table`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import typer

from pmlray.cli.describe.law import describe_checklist, describe_law_json
from pmlray.cli.output import JSON_OPTION, emit, tell
from pmlray.errors import DataError
from pmlray.law import (
    FitOptions,
    Form,
    LawData,
    fit_law,
    law_data,
    measured_choices,
    read_law_data,
)
from pmlray.law.fitted_law import N_SAMPLES
from pmlray.law.placements import PlacedPoint
from pmlray.law.read import read_observations
from pmlray.types import DesignPoint, Observation

if TYPE_CHECKING:
    from pmlray.backends.store.file_store import FileStore
    from pmlray.config import SearchSpec

# Forms, options and number of samples of a fit to points that are of no search.
BY_DEFAULT = (None, FitOptions(), N_SAMPLES)


def fit(
    files: list[Path] = typer.Argument(
        ...,
        metavar="FILE...",
        help="A store, a JSONL of observations, or a CSV of rank,length,delta_loss_nats. Several"
        " stores or JSONLs, as of searches with adapters in other places, make one law.",
    ),
    form: str = typer.Option(
        "auto",
        help=f"{', '.join(get_args(Form))}; auto: all of a store's own, else those"
        " with a ceiling where the base loss is known and power where it is not, by evidence.",
    ),
    base_loss: float = typer.Option(
        None, help="Loss without an adapter, nats a token (for a CSV)."
    ),
    target: list[str] = typer.Option(
        None,
        help="RANK,LENGTH or RANK,LENGTH,STEPS to predict and size for; may be repeated. Of several"
        " placements each is told, or the one named before a colon: PLACEMENT:RANK,LENGTH.",
    ),
    delta_loss: float = typer.Option(
        None,
        help="Loss reduction to size for at the targets, nats a token; by default down to ln 2.",
    ),
    loss: Literal["gaussian", "huber"] = typer.Option(
        None, help="huber: outliers do not bend the law. By default a store's own, else gaussian."
    ),
    saturated: Literal["filter", "censor"] = typer.Option(
        None,
        help="Points that learnt all there is: set aside where the form has no ceiling (the"
        " default), or lower bounds.",
    ),
    optimisation_limited: Literal["keep", "leave_out"] = typer.Option(
        None,
        help="leave_out: runs of a store that more steps would still change are not fitted. By"
        " default as its search has it.",
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Fit the memory law to observations."""
    if form not in ("auto", *get_args(Form)):
        known: str = ", ".join(get_args(Form))
        raise typer.BadParameter(f"use {known} or auto", param_hint="--form")
    chosen: Form | Literal["auto"] = form  # type: ignore[assignment]
    data, runs, left_out = _points(files, base_loss, optimisation_limited)
    for note in data.notes:
        # Printed before the fit: data that was not read may be why it fails.
        tell(f"note: {note}")
    targets = [where for text in target or () for where in _targets(text, data)]
    if delta_loss is not None and not targets:
        raise typer.BadParameter("give a --target to size for", param_hint="--delta-loss")
    laws = {_law_of(file) for file in files}
    # Searches that differ in their laws are fitted by the default.
    forms, own, n_samples = laws.pop() if len(laws) == 1 else BY_DEFAULT
    options = replace(own, loss=loss or own.loss, saturated=saturated or own.saturated)
    found = fit_law(
        data, chosen, forms=forms, n_bootstrap=n_samples, targets=targets, options=options
    )
    law = found.to_json(delta_loss) | {"n_left_out": left_out}
    if choices := measured_choices(found, runs, delta_loss):
        law |= {"choices": [choice.to_json() for choice in choices]}
    text = f"{describe_law_json(law)}\n{describe_checklist(law)}"
    emit(law | {"notes": list(data.notes)}, text, as_json)


def _points(
    files: list[Path], base_loss: float | None, limited: Literal["keep", "leave_out"] | None
) -> tuple[LawData, list[Observation], int]:
    """Return the points to fit, their runs where they are not of a table, and the number of those
    left out as optimisation-limited."""
    if len(files) == 1 and files[0].suffix == ".csv" and limited != "leave_out":
        return read_law_data(files[0], base_loss), [], 0
    if len(files) > 1 and (tables := [file for file in files if file.suffix == ".csv"]):
        raise typer.BadParameter(
            f"{tables[0]} is a table, which is fitted alone: put the rows of several into one, with"
            " a column placement where adapters sat in different places",
            param_hint="FILE...",
        )
    if base_loss is not None and files[0].suffix != ".csv":
        raise typer.BadParameter(
            "is for a table: runs of a store or JSONL have their own", param_hint="--base-loss"
        )
    observations: list[Observation] = []
    n_left_out = 0
    for file in files:
        kept, left_out = _observations(file, limited)
        observations += kept
        n_left_out += left_out
    return law_data(observations), observations, n_left_out


def _observations(
    file: Path, limited: Literal["keep", "leave_out"] | None
) -> tuple[list[Observation], int]:
    """Return the observations of a store or JSONL to fit, and the number of those left out."""
    opened = _search_of(file)
    if limited is None:
        limited = opened[0].law.optimisation_limited if opened else "keep"
    if limited == "keep":
        return list(read_observations(file)), 0
    if opened is None:
        raise typer.BadParameter(
            f"{file} is no store of a search, and only a search's recipe says which runs more steps"
            " would change",
            param_hint="--optimisation-limited",
        )
    from pmlray.study.findings.fitted_runs import fitted_runs

    spec, store = opened
    law = spec.law.model_copy(update={"optimisation_limited": limited})
    observations = store.observations()
    kept = fitted_runs(spec.model_copy(update={"law": law}), observations)
    n_all = len(law_data(observations))
    if n_all and not kept:
        raise DataError(
            f"all {n_all} runs of {file} are optimisation-limited and none is left to fit: measure"
            " with more steps, or keep them (--optimisation-limited keep)"
        )
    return list(kept), n_all - len(kept)


def _law_of(file: Path) -> tuple[tuple[Form, ...] | None, FitOptions, int]:
    """Return the forms that `auto` tries, None for the default ones, the options of the fit, and
    the number of its samples.

    Those of a store are its search's own, so that the fit equals the search's law.
    """
    if (opened := _search_of(file)) is not None:
        law = opened[0].law
        return law.forms, law.fit_options(), law.n_bootstrap
    return BY_DEFAULT


def _search_of(file: Path) -> tuple[SearchSpec, FileStore] | None:
    """Return the spec and store of a search's folder; None for anything else."""
    if file.is_dir():
        from pmlray.api.stores import open_store
        from pmlray.config.stored_files import SEARCH_FILE

        if (file / SEARCH_FILE).is_file():
            return open_store(file.absolute())
    return None


def _targets(text: str, data: LawData) -> list[DesignPoint | PlacedPoint]:
    """Parse `[PLACEMENT:]RANK,LENGTH[,STEPS]`; without a placement, a target at each of several."""
    name, _, numbers = text.rpartition(":")
    known = {placement.name: placement for placement in data.placements}
    if name and name not in known:
        raise typer.BadParameter(
            f"{name!r} is no placement of these points"
            + (f", which are {', '.join(map(repr, known))}" if known else ", which name none"),
            param_hint="--target",
        )
    point = _target(numbers, data)
    if name:
        return [PlacedPoint(point, known[name])]
    if data.several_placements:
        return [PlacedPoint(point, placement) for placement in data.placements]
    return [point]


def _target(text: str, data: LawData) -> DesignPoint:
    """Parse `RANK,LENGTH[,STEPS]` into a point; without STEPS, the most steps measured."""
    try:
        rank, length, *steps = (int(part) for part in text.split(","))
        [train_steps] = steps or [int(data.train_steps.max())]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not RANK,LENGTH or RANK,LENGTH,STEPS in whole numbers",
            param_hint="--target",
        ) from None
    if rank < 1 or length < 1 or train_steps < bool(data.train_steps.max()):
        raise typer.BadParameter(
            f"{text!r}: rank, length and steps must be at least 1", param_hint="--target"
        )
    return DesignPoint(rank, length, train_steps)


def table(
    store: Path = typer.Argument(..., help="A search's store."),
    file: Path = typer.Argument(..., help="The CSV file to write."),
    note: list[str] = typer.Option((), help="A line for the file's head, such as the machine."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write a store's measurements as one table, which `pmlray search --replay` can look up."""
    from pmlray.api.stores import open_store
    from pmlray.study.search.replay_table import table_provenance, write_table

    spec, kept = open_store(store.absolute())
    observations = kept.observations()
    rows = write_table(file, observations, (*table_provenance(spec.search_id, observations), *note))
    emit({"file": str(file), "rows": rows}, f"{file}: {rows} runs", as_json)
