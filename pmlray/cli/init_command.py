"""`pmlray init`: a commented search file for a chosen model and task."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import typer

from pmlray.api.records.prompts import (
    PLAIN_CONVERSATIONS,
    default_format,
    holds_conversations,
)
from pmlray.api.records.source import named_columns, parse_columns
from pmlray.atomic_files import write_once, write_over
from pmlray.cli.output import COLUMNS_OPTION, JSON_OPTION, emit, tell
from pmlray.cli.schema_command import file_schema
from pmlray.config import SearchSpec
from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.models import (
    KNOWN_MODELS,
    KNOWN_REVISIONS,
    PULLABLE,
    ModelSource,
    resolve_model,
)
from pmlray.config.prepared_search import prepare_search
from pmlray.errors import PmlrayError, SpecError
from pmlray.memory import Columns, RecordSource, TaskKind, encode_texts, read_records

log = logging.getLogger(__name__)

KINDS = get_args(TaskKind)
SCHEMA = "search.schema.json"


def init(
    file: Path = typer.Argument(
        None, help="The file to write; default: TASK_MODEL.yaml here, or beside the records."
    ),
    task: TaskKind = typer.Option(
        None, help="What is memorised; default: the records, where these are given."
    ),
    model: str = typer.Option(
        None, help=f"Base model: {', '.join(KNOWN_MODELS)}, another hub id, or a folder."
    ),
    revision: str = typer.Option(
        None, help="Commit of a hub model; default: its default branch's, which the file then has."
    ),
    records: Path = typer.Option(None, help="The records, for --task records."),
    columns: str = COLUMNS_OPTION,
    text: Path = typer.Option(None, help="A plain text for long_context, instead of random tokens"),
    layer: int = typer.Option(None, min=0, help="Adapted layer; by default two thirds up."),
    gpu_hours: float = typer.Option(
        None, min=0.0, help="Budget of the law; by default a quarter of what the grid would cost."
    ),
    force: bool = typer.Option(False, "--force", help="Overwrite the file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write a commented search file; asks in a terminal for what no option says.

    Records are read first: what cannot be read is told before any question.
    """
    named = named_columns(parse_columns(columns))
    if records is not None:
        task = task or "records"
        _check_fit(task, records, named, text)
        if file is not None:
            _relative(records, file)
        _say_records(records, named)
    asks = _at_a_terminal()
    if asks:
        task = task or _ask("What is memorised", KINDS[0], _check_kind, KINDS)
        model = model or _ask(
            "Base model, a hub id or a folder",
            PULLABLE[0],
            lambda answer: resolve_model(answer, revision or KNOWN_REVISIONS.get(answer)),
            tuple(KNOWN_MODELS),
        )
        if task == "records" and records is None:
            read = partial(_say_records, columns=named)
            records = Path(_ask("File of the records", None, lambda x: read(Path(x))))
    if task is None or model is None:
        raise SpecError(
            "pmlray init needs --task and --model where it cannot ask, such as --task phonebook"
            f" --model {PULLABLE[0]}; tasks: {', '.join(KINDS)}"
        )
    if file is None:
        # Beside the records, since a search takes along only files of its own folder.
        folder = Path() if records is None else records.parent
        name = folder / f"{task}_{_name_of(model)}.yaml"
        file = name
        if asks:
            file = Path(_ask("Write to", str(name), lambda x: _check_place(Path(x), force)))
    search = write_search(
        *(file, task, model, revision, records, named, text, layer, gpu_hours, force)
    )
    found = {"file": str(file), "search_id": search.search_id}
    emit(found, f"{file} is written; next: pmlray plan {file}", as_json)


def write_search(
    file: Path,
    task: TaskKind,
    model: str,
    revision: str | None,
    records: Path | None,
    columns: Columns | None,
    text: Path | None,
    layer: int | None,
    gpu_hours: float | None,
    force: bool,
) -> SearchSpec:
    """Write a valid search file, or raise the error and leave no file behind.

    SpecError where a file exists and not `force`, or an option does not fit the task.
    """
    # Imported late: the template takes a moment that other commands need not spend.
    from pmlray.study.search_template import NewSearch, guessed_tokens, search_yaml

    _check_place(file, force)
    _check_fit(task, records, columns, text)
    names = {
        key: None if path is None else _relative(path, file)
        for key, path in (("text", text), ("records", records))
    }
    revision = revision or KNOWN_REVISIONS.get(model)
    source = resolve_model(model, revision)
    revision = source.revision or revision
    n_layers = source.geometry.n_layers
    if layer is not None and layer >= n_layers:
        raise SpecError(f"--layer is {layer}, but {model} has layers 0 to {n_layers - 1}")
    tokens: list[int] = []
    guessed = False
    prompt_format: Literal["plain", "chat"] | None = None
    if records is not None:
        asked = RecordSource(records, columns)
        if holds_conversations(asked):
            prompt_format = default_format(asked, model, source)
            if prompt_format == "plain":
                log.warning(PLAIN_CONVERSATIONS)
        targets = [target for _, target in read_records(records, columns)]
        counted = _count(source, targets)
        tokens, guessed = counted or guessed_tokens(targets), counted is None
    file.parent.mkdir(parents=True, exist_ok=True)
    schema, new_schema = _schema_beside(file)
    wanted = NewSearch(
        name=_name_of(file.stem),
        kind=task,
        model_id=model,
        revision=revision,
        layer=layer,
        gpu_hours=gpu_hours,
        text=names["text"],
        records=names["records"],
        columns=columns,
        target_tokens=tokens,
        tokens_guessed=guessed,
        prompt_format=prompt_format,
    )
    content = search_yaml(wanted, source, str(file), schema)
    # The draft lies in the same folder, so that relative paths mean the same.
    draft = file.with_name(f".{file.stem}.draft.yaml")
    try:
        write_over(draft, content.encode())
        spec = prepare_search(draft).spec
    finally:
        draft.unlink(missing_ok=True)
    if new_schema:
        write_once(file.parent / SCHEMA, json.dumps(file_schema("search"), indent=2).encode())
    if force:
        write_over(file, content.encode())
    elif not write_once(file, content.encode()):
        raise SpecError(f"{file} was written by somebody else meanwhile; choose another name")
    return spec


def _check_place(file: Path, force: bool) -> None:
    if file.suffix not in (".yaml", ".yml"):
        raise SpecError(f"{file}: a search file ends in .yaml")
    if file.exists() and not force:
        raise SpecError(f"{file} is there already; choose another name, or --force to overwrite it")


def _check_kind(answer: str) -> None:
    if answer not in KINDS:
        raise SpecError(f"{answer!r} is none of {', '.join(KINDS)}")


def _say_records(records: Path, columns: Columns | None) -> None:
    """Read records, and say how many there are; DataError where they cannot be read."""
    tell(f"{records}: {len(read_records(records, columns))} records")


def _check_fit(
    task: TaskKind, records: Path | None, columns: Columns | None, text: Path | None
) -> None:
    if (task == "records") != (records is not None):
        raise SpecError(
            "--task records needs --records FILE"
            if records is None
            else f"--records goes with --task records, not {task}"
        )
    if columns is not None and records is None:
        raise SpecError("--columns names columns of --records, which is not given")
    if text is not None and task != "long_context":
        raise SpecError(f"--text goes with --task long_context, not {task}")


def _count(source: ModelSource, targets: Sequence[str]) -> list[int] | None:
    """Count the tokens of each target; None where the base's tokenizer is not on this machine."""
    if source.folder is None or not (source.folder / "tokenizer.json").is_file():
        return None
    tokenizer = read_tokenizer(source.folder / "tokenizer.json")
    return [len(ids) for ids in encode_texts(tokenizer, targets)]


def _schema_beside(file: Path) -> tuple[str, bool]:
    """Return the schema's path relative to the file, and whether it must be written.

    The schema is that of the file's folder or of one above it, else a new one beside the file.
    """
    folder = file.absolute().parent
    for above in (folder, *folder.parents):
        if (above / SCHEMA).is_file():
            return os.path.relpath(above / SCHEMA, folder), False
    return SCHEMA, True


def _relative(path: Path, file: Path) -> str:
    """Return the path of a task's file relative to the search file.

    SpecError where it lies outside the search's folder: a submitted search takes along only files
    of its own folder.
    """
    here, folder = os.path.abspath(path), os.path.dirname(os.path.abspath(file))
    if not Path(here).is_relative_to(folder):
        raise SpecError(
            f"{path} is not in the folder of {file}; write the search beside it:"
            f" pmlray init {path.parent / file.name}"
        )
    return os.path.relpath(here, folder)


def _name_of(text: str) -> str:
    """Return a name for a search, from a file's or a model's name."""
    last = text.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]+", "_", last).strip("_")[:60] or "search"


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(
    what: str, default: str | None, check: Callable[[str], object], options: Sequence[str] = ()
) -> str:
    """Prompt until `check` accepts the answer, and return it."""

    def checked(answer: str) -> str:
        try:
            check(answer)
        except PmlrayError as error:
            raise typer.BadParameter(str(error)) from error
        return answer

    shown = f"{what} ({', '.join(options)})" if options else what
    return typer.prompt(shown, default=default, value_proc=checked, err=True)
