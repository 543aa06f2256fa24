"""`pmlray tokens`: tokens that fail again and again, and whether capacity explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from pmlray.atomic_files import write_over
from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.prepared_search import prepare_spec
from pmlray.config.search_spec import SearchSpec
from pmlray.config.stored_files import SEARCH_FILE, read_stored
from pmlray.errors import INSTALL_TRAIN, DataError, PmlrayError
from pmlray.study.findings.stubborn_tokens import (
    LEVEL,
    NEARLY_ALL,
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
SHOWN_AT_MOST = 20


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
    own_layer = None if spec.probe is None else spec.probe.layer
    moved = None
    if run is not None and layer is not None:
        moved = _moved(store, run, layer)
    found: dict[str, Any] = {
        "search_id": spec.search_id,
        "layer": own_layer,
        "placement": spec.describe_places(),
        "n_runs": len(observations),
        "n_families": len(families(observations)),
        "n_tokens": len(tallies),
        "n_untested": sum(t.recalling == 0 for t in tallies),
        "verdicts": {v: sum(t.verdict == v for t in tallies) for v in get_args(Verdict)},
        "tokens": [_token_json(t, traces, run, moved) for t in shown],
        "ids": [asdict(t) for t in id_tallies(own, ids)],
        "run": run and _run_json(run, own_layer),
        "moved": moved and _run_json(moved, layer) | {"store": str(_layer_store(store, layer))},
        "note": note,
    }
    emit(found, describe_tokens(found), as_json)


def _run(observations: Sequence[Observation], run_key: str) -> Observation:
    for o in observations:
        if o.run_key == run_key:
            return o
    raise typer.BadParameter(
        f"no observation has the key {run_key!r}; report.json beside the report lists them all",
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
    from pmlray.config.bases.models import require_present

    try:
        from pmlray.engine.token_report import trace_tokens
    except ImportError as error:
        return {}, f"no token texts and activations: {error}; run: {INSTALL_TRAIN}"
    try:
        search = prepare_spec(read_stored(SearchSpec, store / SEARCH_FILE), store)
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

    search = at_layer(prepare_spec(read_stored(SearchSpec, store / SEARCH_FILE), store), run, layer)
    kept = FileStore(_layer_store(store, layer))
    with kept.driver_lock():
        write_over(kept.folder / SEARCH_FILE, search.spec.model_dump_json(indent=2).encode())
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
        "point": o.point.to_json(),
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


def describe_tokens(found: Mapping[str, Any]) -> str:
    """Describe the report on tokens, from its JSON object."""
    verdicts, run = found["verdicts"], found["run"]
    lines = [
        f"{found['search_id']}: {found['n_tokens']} supervised tokens in {found['n_runs']} runs"
        f" ({found['n_families']} that differ in more than their budget), adapters at"
        f" {found['placement']}",
        f"pathology {verdicts['pathology']}, hard {verdicts['hard']}, capacity"
        f" {verdicts['capacity']} (family-wise error {LEVEL:g})",
    ]
    if found["n_untested"]:
        lines.append(
            f"{found['n_untested']} tokens lie in no run that recalls {100 * NEARLY_ALL:g} % of its"
            " tokens: a pathology could not be told from capacity there"
        )
    if run is not None:
        lines.append(_run_line("run", run))
    if found["moved"] is not None:
        lines += _moved_lines(found)
    shown = found["tokens"][:SHOWN_AT_MOST]
    lines += _table([_row(token) for token in shown])
    if left := len(found["tokens"]) - len(shown):
        lines.append(f"and {left} more; --json has them all")
    ids = [t for t in found["ids"] if t["p_adjusted"] <= LEVEL]
    lines += [
        f"token id {t['token_id']} fails {t['failed']} of {t['tokens']} times at its {t['places']}"
        f" places, {t['expected']:.0f} expected (adjusted p {t['p_adjusted']:.2g})"
        for t in ids
    ]
    if found["note"]:
        lines.append(found["note"])
    return "\n".join(lines)


def _run_line(name: str, run: Mapping[str, Any]) -> str:
    point = run["point"]
    at = "" if run["layer"] is None else f" at layer {run['layer']}"
    return (
        f"{name} {run['run_key']}{at}: lora_rank={point['lora_rank']}"
        f" seq_len={point['seq_len']} train_steps={point['train_steps']}, final_loss"
        f" {run['final_loss']:.4g} after {run['steps_taken']} steps; {run['n_failed']} of"
        f" {run['n_tokens']} tokens fail, {run['n_wrong']} of them with a wrong argmax"
    )


def _moved_lines(found: Mapping[str, Any]) -> list[str]:
    moved, tokens = found["moved"], found["tokens"]
    share = 1.0 - moved["n_failed"] / moved["n_tokens"]
    lines = [_run_line("moved", moved)]
    groups = {"stubborn": [t for t in tokens if t["verdict"] != "capacity"], "failing": tokens}
    lines += [
        f"  layer {moved['layer']} cures {sum(t['cured'] for t in group)} of {len(group)}"
        f" {name} tokens; it recalls {100 * share:.3g} % of all"
        for name, group in groups.items()
        if group
    ]
    return [*lines, f"  kept in {moved['store']}, a store of its own"]


def _row(t: Mapping[str, Any]) -> dict[str, str]:
    row = {"sequence": str(t["sequence_id"]), "position": str(t["position"])}
    if (token := t["token"]) is not None:
        row |= {"id": str(token["token_id"]), "text": repr(token["text"])}
    row |= {
        "failed": f"{t['failed']}/{t['runs']}",
        "wrong": str(t["wrong"]),
        "apart": f"{t['families_failed']}/{t['families']}",
        "expected": f"{t['expected']:.1f}",
        "adjusted p": f"{t['p_adjusted']:.2g}",
        "recalling": f"{t['recalling_failed']}/{t['recalling']}",
        "verdict": t["verdict"],
    }
    if token is not None:
        row |= {
            "base p": f"{token['base_p']:.2g}",
            "norm": f"{token['norm']:.4g}",
            "to median": f"{token['norm_ratio']:.2f}",
        }
    row |= {
        name[:-2] + " p": f"{t[name]:.3f}" for name in ("run_p", "moved_p") if t[name] is not None
    }
    return row


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["no token fails"]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    lines += ["  ".join(row[name].rjust(width) for name, width in widths.items()) for row in rows]
    return [
        *lines,
        "failed: runs that leave it at p <= 0.5; apart: the same over runs that differ in more than"
        " their budget, with the number that capacity lets one expect; recalling: of these, the"
        f" runs that recall {100 * NEARLY_ALL:g} % of their tokens; norm: of the residual stream"
        " behind the adapter's layer (of adapters at several sites: before the lowest adapted one)"
        " where the token is predicted",
    ]
