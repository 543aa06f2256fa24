"""`pmlray size` and `pmlray recall`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

import typer

from pmlray.api.environment.process import train_extra
from pmlray.api.records.source import parse_columns, record_source
from pmlray.api.sizing.size import carry_out
from pmlray.cli.describe.sizing import describe_plan, describe_size, repeated
from pmlray.cli.output import COLUMNS_OPTION, JSON_OPTION, emit, tell
from pmlray.cli.search_commands import PROFILE_OPTION
from pmlray.config.bases.model_spec import DtypeChoice
from pmlray.config.load import read_profile
from pmlray.config.secrets import no_password
from pmlray.study.sizing.card import describe_recall
from pmlray.study.sizing.decide_placement import Prefer
from pmlray.study.sizing.request import Wanted

RECORDS_OPTION = typer.Option(
    ...,
    help="Records: JSON lines or array, .csv, .tsv (any of these as .gz), .parquet, or a folder of"
    " `datasets`; with query and target, prompt and completion, messages, or another known layout.",
)
SPLIT_OPTION = typer.Option(
    None, help="Split of a data set: --records is its id on the hub, or the folder of its files."
)
FORMAT_OPTION = typer.Option(
    None,
    help="How queries become prompts: chat, by the base's chat template (the default for records"
    " that are conversations, where the base has a template), or plain text (the default else).",
)
RECALL_FORMAT_OPTION = typer.Option(
    None,
    help="How queries become prompts; by default as the adapter was trained, where that is known,"
    " else as by pmlray size.",
)
DTYPE_OPTION = typer.Option(
    "auto", help="Of the base model; auto: bfloat16 where the device multiplies it, else float32."
)
RECALL_DTYPE_OPTION = typer.Option(
    "auto", help="Of the base model; auto: as the adapter was trained, else the device's."
)
REVISION_OPTION = typer.Option(
    None, help="Commit of a hub model; default: its default branch's, which is kept."
)
SHOWN = 10


def size(
    records: Path = RECORDS_OPTION,
    columns: str = COLUMNS_OPTION,
    split: str = SPLIT_OPTION,
    model: str = typer.Option(..., help="Base model: a pulled name, a hub id or a folder."),
    recall: float = typer.Option(0.99, help="Share of the records to recall word for word."),
    confidence: float = typer.Option(0.9, help="How sure the rank must be to reach it."),
    law: Path = typer.Option(None, help="Store of a records search whose law to use."),
    out: Path = typer.Option(
        None,
        help="Folder of the results; kept and continued. Default: a folder of the profile's"
        " storage, of PMLRAY_STORE or of ./runs, by what is asked.",
    ),
    steps: int = typer.Option(None, min=1, help="Optimiser steps; by default 40 epochs."),
    max_rank: int = typer.Option(None, min=1, help="Largest rank allowed."),
    placement: list[str] = typer.Option(
        None,
        help="Adapted modules: down_proj of one layer (the default), all-linear, names such as"
        " q_proj,v_proj, or mlp_block (mlp), the paper's, which PEFT does not load. Given several"
        " times, each with its layers as in q_proj,v_proj@4-9, they are compared and the best is"
        " taken; auto compares all-linear and q_proj,v_proj of all layers, the MLP's modules of"
        " the upper third, and down_proj of one layer two thirds up.",
    ),
    prefer: Prefer = typer.Option(
        "parameters",
        help="Of compared placements, what is least at the one taken: parameters, gpu_seconds of"
        " the adapter's training, or harm to plain prose.",
    ),
    budget: float = typer.Option(
        None, help="gpu_seconds for the law's search; by default as many as it takes."
    ),
    layer: int = typer.Option(
        None, help="The one adapted layer; for down_proj and mlp by default two thirds up."
    ),
    layers: str = typer.Option(
        None, help="Adapted layers: all (the default of other modules), 3,7 or 4-9."
    ),
    alpha: str = typer.Option(
        None, help="LoRA's alpha: a number, or a multiple of the rank such as 2r; default: 1r."
    ),
    rslora: bool = typer.Option(
        False, "--rslora", help="Divide alpha by the root of the rank instead of the rank."
    ),
    from_adapter: Path = typer.Option(
        None,
        help="Folder of an adapter that PEFT or pmlray saved: train on from it, at its sites, with"
        " its rank or more.",
    ),
    prompt_format: Literal["plain", "chat"] = FORMAT_OPTION,
    revision: str = REVISION_OPTION,
    dtype: DtypeChoice = DTYPE_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(
        None,
        callback=no_password,
        help="MLflow; default: MLFLOW_TRACKING_URI, the profile's, or a database in the results.",
    ),
    address: str = typer.Option(
        None, help="HOST:PORT of a Ray head; default: RAY_ADDRESS or a local Ray."
    ),
    keep_duplicates: bool = typer.Option(
        False,
        "--keep-duplicates",
        help="Train on a record as often as it stands in the file; it still counts once.",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show what would be done, and its cost by a few steps taken here."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Find the smallest rank that holds these records, train that adapter and check it.

    Exit code 1 when even the largest rank recalls fewer records than wanted.
    """
    from pmlray.api.sizing.places import split_placements
    from pmlray.api.sizing.plan import SizeRequest, prepare_size

    one, compared = split_placements(placement or ())
    source = record_source(records, parse_columns(columns), split)
    plan = prepare_size(
        SizeRequest(
            source, model, revision, dtype, Wanted(recall, confidence), law, out, one,
            layer, prompt_format, steps, max_rank, read_profile(profile), keep_duplicates,
            layers, alpha, rslora, from_adapter, compared, prefer, budget,
        )
    )  # fmt: skip
    if dry_run:
        from pmlray.api.sizing.forecast import forecast

        with contextlib.redirect_stdout(sys.stderr):
            cost = forecast(plan, address, tell)
        found = plan.to_json(cost)
        emit(found, describe_plan(found), as_json)
        return
    try:
        # Ray and Tune print to stdout, which is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            found = carry_out(plan, address, tracking_uri, tell).to_json()
    except KeyboardInterrupt:
        tell(f"interrupted; the same command continues from {plan.out}")
        raise typer.Exit(130) from None
    emit(found, describe_size(found), as_json)
    if not found["recall"]["reached"]:
        raise typer.Exit(1)


def recall(
    adapter: Path = typer.Option(
        ..., help="An adapter's folder: of pmlray size, of a store, or one that PEFT saved."
    ),
    records: Path = RECORDS_OPTION,
    columns: str = COLUMNS_OPTION,
    split: str = SPLIT_OPTION,
    least: float = typer.Option(
        None, "--min", min=0.0, max=1.0, help="Exit code 1 when exact recall is below this share."
    ),
    end: bool = typer.Option(
        None,
        "--end/--no-end",
        help="Whether an answer must end after its target to count as recalled; by default as the"
        " adapter was trained, else yes.",
    ),
    model: str = typer.Option(
        None, help="Base model: a pulled name, a hub id or a folder; default: the adapter's own."
    ),
    prompt_format: Literal["plain", "chat"] = RECALL_FORMAT_OPTION,
    revision: str = REVISION_OPTION,
    dtype: DtypeChoice = RECALL_DTYPE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check which records an adapter recalls word for word, by real greedy decoding."""
    with train_extra():
        from pmlray.api.recall_check import RecallRequest, decode_task, prepare_recall

    source = record_source(records, parse_columns(columns), split)
    search = prepare_recall(
        RecallRequest(adapter, source, model, revision, dtype, prompt_format, end)
    )
    with contextlib.redirect_stdout(sys.stderr):
        recited = decode_task(search, adapter, tell)
    passed = None if least is None else recited.exact_recall >= least
    found = {
        "adapter": str(adapter),
        "model": search.source.identity,
        **search.counts(),
        **recited.counts(),
        "min": least,
        "passed": passed,
        "lost": [text.to_json() for text in search.lost_texts],
        "not_recalled": recited.missed(),
    }
    emit(found, _describe_recall(found), as_json)
    if passed is False:
        raise typer.Exit(1)


def _describe_recall(found: dict[str, Any]) -> str:
    missed = found["not_recalled"]
    lines = [
        f"recalled {describe_recall(found, found['n_records'])} ({found['exact_recall']:.4f})"
        f"{repeated(found)}"
    ]
    if found["lost"]:
        lines.append(f"{len(found['lost'])} targets are changed by the tokenizer: not recalled")
    lines += [
        f"  {row['query']!r}: {row['answer']!r} instead of {row['target']!r}"
        for row in missed[:SHOWN]
    ]
    if len(missed) > SHOWN:
        lines.append(f"  and {len(missed) - SHOWN} more; --json lists them all")
    if found["passed"] is False:
        lines.append(f"below the wanted {found['min']:.4g}")
    return "\n".join(lines)
