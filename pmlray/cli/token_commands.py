"""`pmlray tokens`: tokens that fail again and again, and whether capacity explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from pmlray.cli.describe_tokens import describe_tokens
from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.prepared_search import prepare_search
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import INSTALL_TRAIN, DataError, PmlrayError
from pmlray.study.findings.stubborn_tokens import (
    TokenTally,
    Verdict,
    failing,
    families,
    id_tallies,
    token_tallies,
)
from pmlray.types import Observation

if TYPE_CHECKING:
    from pmlray.engine.token_report import TracedToken

# Least number of tokens shown, even where fewer are suspicious.
SHOWN_AT_LEAST = 5


def tokens(
    store: Path = typer.Argument(..., help="A search's store."),
    run_key: str = typer.Argument(None, help="Only the tokens that this run fails."),
    layer: int = typer.Option(
        None, min=0, help="Train RUN_KEY again with its adapter at this layer, and compare."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Tokens that fail over ranks, seeds and texts: pathology told apart from capacity.

    With --layer the moved run is kept in STORE/layers/N, a store of its own; nothing that STORE
    holds is changed. At the search's own layer it shows how far a run differs from itself.
    """
    from pmlray.api.stores import open_store

    if layer is not None and run_key is None:
        raise typer.BadParameter("name the RUN_KEY to train again", param_hint="--layer")
    store = store.absolute()
    spec, kept = open_store(store)
    observations = kept.observations()
    if not observations:
        raise DataError(f"{store} holds no observations yet; run the search first")
    run = None if run_key is None else _run(observations, run_key)
    tallies = token_tallies(observations)
    shown = _shown(tallies, run)
    own = [o for o in observations if run is None or o.sequence_id == run.sequence_id]
    traces, note = _traces(store, own)
    ids = {sequence_id: [t.token_id for t in traced] for sequence_id, traced in traces.items()}
    moved = None
    if run is not None and layer is not None:
        moved = _moved(store, run, layer)
    found: dict[str, Any] = {
        "search_id": spec.search_id,
        "layer": spec.probe.layer,
        "n_runs": len(observations),
        "n_families": len(families(observations)),
        "n_tokens": len(tallies),
        "n_untested": sum(t.recalling == 0 for t in tallies),
        "verdicts": {v: sum(t.verdict == v for t in tallies) for v in get_args(Verdict)},
        "tokens": [_token_json(t, traces, run, moved) for t in shown],
        "ids": [asdict(t) for t in id_tallies(own, ids)],
        "run": run and _run_json(run, spec.probe.layer),
        "moved": moved and _run_json(moved, layer) | {"store": str(_layer_store(store, layer))},
        "note": note,
    }
    emit(found, describe_tokens(found), as_json)


def _run(observations: Sequence[Observation], run_key: str) -> Observation:
    for o in observations:
        if o.run_key == run_key:
            return o
    raise typer.BadParameter(
        f"no observation has the key {run_key!r}; the report's table of runs lists them all",
        param_hint="RUN_KEY",
    )


def _shown(tallies: Sequence[TokenTally], run: Observation | None) -> list[TokenTally]:
    """Return the tokens to show: those that the run fails, else the most suspicious."""
    if run is not None:
        failed = failing(run)
        here = [t for t in tallies if t.sequence_id == run.sequence_id and t.position < failed.size]
        return [t for t in here if failed[t.position]]
    n_suspects = sum(t.verdict != "capacity" for t in tallies)
    return list(tallies[: max(n_suspects, SHOWN_AT_LEAST)])


def _traces(
    store: Path, observations: Sequence[Observation]
) -> tuple[Mapping[int, Sequence[TracedToken]], str | None]:
    """Return the base model's view of the runs' texts, or the reason why it is missing."""
    from pmlray.config.base_models import require_present

    try:
        from pmlray.engine.token_report import trace_tokens
    except ImportError as error:
        return {}, f"no token texts and activations: {error}; run: {INSTALL_TRAIN}"
    try:
        search = prepare_search(store / SEARCH_FILE)
        require_present(search.spec.model.id, search.source)
        return trace_tokens(search, observations), None
    except PmlrayError as error:
        return {}, f"no token texts and activations: {error}"


def _moved(store: Path, run: Observation, layer: int) -> Observation:
    """Return the run at another layer, trained now or read from that layer's store."""
    try:
        from pmlray.engine.token_report import at_layer, measure_moved
    except ImportError as error:
        raise DataError(
            f"training needs the train extra ({error}); run: {INSTALL_TRAIN}"
        ) from error
    from pmlray.backends.store.file_store import FileStore

    search = at_layer(prepare_search(store / SEARCH_FILE), run, layer)
    kept = FileStore(_layer_store(store, layer))
    with kept.driver_lock():
        (kept.folder / SEARCH_FILE).write_text(search.spec.model_dump_json(indent=2))
        return measure_moved(search, run, kept, kept.adapters)


def _layer_store(store: Path, layer: int | None) -> Path:
    return store / "layers" / str(layer)


def _token_json(
    tally: TokenTally,
    traces: Mapping[int, Sequence[TracedToken]],
    run: Observation | None,
    moved: Observation | None,
) -> dict[str, Any]:
    traced = traces.get(tally.sequence_id)
    row: dict[str, Any] = asdict(tally) | {
        "token": asdict(traced[tally.position]) if traced else None
    }
    for name, o in (("run_p", run), ("moved_p", moved)):
        row[name] = o and o.token_p[tally.position]
    # True where the token is recalled at the other layer.
    row["cured"] = moved and moved.token_p[tally.position] > 0.5
    return row


def _run_json(o: Observation, layer: int | None) -> dict[str, Any]:
    return {
        "run_key": o.run_key,
        "layer": layer,
        "point": asdict(o.point),
        "method": o.method,
        "sequence_id": o.sequence_id,
        "seed": o.seed,
        "steps_taken": o.curve[-1][0],
        "base_loss": o.base_loss,
        "final_loss": o.final_loss,
        "n_tokens": len(o.token_p),
        "n_failed": int(failing(o).sum()),
        "n_wrong": len(o.wrong_tokens),
    }
