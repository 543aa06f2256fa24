"""`pmlray validate`, `plan` and `search`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import typer

from pmlray.cli.output import JSON_OPTION, SET_OPTION, emit
from pmlray.config import ClusterProfile, load_spec
from pmlray.config.prepared import PreparedSearch, prepare_search

SPEC_ARGUMENT = typer.Argument(..., help="A searches/*.yaml file.")
PROFILE_OPTION = typer.Option(None, help="A cluster/profiles/*.yaml file.")


def read_profile(path: Path | None) -> ClusterProfile:
    """The profile of a file, or that of one machine without a GPU."""
    return ClusterProfile() if path is None else load_spec(ClusterProfile, path)


def validate(
    spec: Path = SPEC_ARGUMENT,
    overrides: list[str] = SET_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a search file without starting anything."""
    search = prepare_search(spec, overrides or ())
    runs = len(search.spec.space.points()) * len(search.spec.replicates())
    found = {
        "valid": True,
        "search_id": search.spec.search_id,
        "model": search.source.identity,
        "n_candidates": runs,
    }
    emit(found, f"{spec} is valid: {search.spec.search_id}, {runs} possible runs", as_json)


def plan(
    spec: Path = SPEC_ARGUMENT,
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Show the candidates, their predicted cost and the first pack; starts nothing."""
    from pmlray.study.plan import first_cost, first_pack

    search = prepare_search(spec, overrides or ())
    gpu = read_profile(profile).gpus_per_pack > 0 or not _fits_a_cpu(search)
    cost = first_cost(search, gpu)
    pack = first_pack(search, cost)
    cells = [
        {
            "lora_rank": c.lora_rank,
            "seq_len": c.seq_len,
            "train_steps": c.train_steps,
            "gpu_seconds": cost.predict(c),
        }
        for c in search.spec.space.points()
    ]
    replicates = len(search.spec.replicates())
    grid = replicates * sum(c["gpu_seconds"] for c in cells)
    found: dict[str, Any] = {
        "search_id": search.spec.search_id,
        "device": "GPU" if gpu else "CPU core",
        "candidates": cells,
        "replicates": replicates,
        "full_grid_gpu_seconds": grid,
        "budget_gpu_seconds": search.spec.budget.law_seconds,
        "first_pack": [
            {
                "run_key": run.run_key,
                "lora_rank": run.point.lora_rank,
                "seq_len": run.point.seq_len,
                "train_steps": run.point.train_steps,
                "sequence_id": run.sequence_id,
                "seed": run.seed,
                "gpu_seconds": cost.predict(run.point),
            }
            for run in pack
        ],
    }
    lines = [
        f"{search.spec.search_id}: {len(cells)} design points x {replicates} replicates",
        f"all of them would cost about {grid:.0f} {found['device']}-seconds;"
        f" the budget is {search.spec.budget.law_seconds:.0f} (rates are guesses until measured)",
        "first pack:",
    ]
    lines += [
        f"  lora_rank={r['lora_rank']} seq_len={r['seq_len']} train_steps={r['train_steps']}"
        f" sequence={r['sequence_id']} seed={r['seed']}: about {r['gpu_seconds']:.0f} gpu_seconds"
        for r in found["first_pack"]
    ]
    emit(found, "\n".join(lines), as_json)


def search(
    spec: Path = SPEC_ARGUMENT,
    store: Path = typer.Option(None, help="Folder of the search's results; kept and continued."),
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(None, help="MLflow; default: a database in the store."),
    address: str = typer.Option(None, help="Ray cluster; default: RAY_ADDRESS or a local Ray."),
    replay: Path = typer.Option(None, help="Look measurements up in this table; trains nothing."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Run a search, or continue the one that is in the store."""
    from pmlray.cli.driver import SearchRun, default_store, run_search, tracking_uri_for
    from pmlray.cli.findings import describe_result
    from pmlray.cli.progress import live_progress

    prepared = prepare_search(spec, overrides or ())
    settings = read_profile(profile)
    folder = store.absolute() if store is not None else default_store(prepared, settings)
    uri = tracking_uri_for(folder, settings, tracking_uri)
    try:
        # Ray and Tune print as they please; stdout is for the result alone.
        with contextlib.redirect_stdout(sys.stderr), live_progress() as announce:
            found = run_search(
                SearchRun(prepared, settings, folder, uri, address, replay), announce
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues from {folder}", err=True)
        raise typer.Exit(130) from None
    emit(found, describe_result(found), as_json)


def _fits_a_cpu(search: PreparedSearch) -> bool:
    """Bases of over a billion weights are planned for GPUs."""
    geometry = search.source.geometry
    return geometry.n_layers * geometry.layer_weights < 1e9
