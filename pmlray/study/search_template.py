"""Template of a search file: commented, with defaults that fit the base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import jinja2
import yaml

from pmlray.config.bases.models import ModelSource
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import SearchSpec
from pmlray.memory import Columns, TaskKind, TaskSource
from pmlray.study.search.plan import first_cost, is_large
from pmlray.study.sizing.request import BATCH_SIZE, SUBSET_SHARES, default_layer, default_steps
from pmlray.version import shipped

# Replays of exhaustive grids needed 22 and 11 % of their cost (scripts/bench/results/design.md),
# and rates are guesses.
BUDGET_SHARE = 0.25
MEMFT_SHARE = 0.3
# Gives fewer tokens than nearly every text has, for a base whose tokenizer is missing.
CHARACTERS_PER_TOKEN = 6.0


@dataclass(frozen=True)
class Grid:
    """Grid of a search, and the number of records per step."""

    lora_rank: list[int]
    seq_len: list[int]
    train_steps: list[int]
    batch_size: int


SMALL_RANKS, LARGE_RANKS = [1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32, 64]
SMALL = {
    "long_context": Grid(SMALL_RANKS, [24, 40, 64, 104, 168, 272], [40, 80, 160], 1),
    "phonebook": Grid(SMALL_RANKS, [40, 80, 160, 320, 640, 1280], [40, 80, 160], 4),
    "linear_rule": Grid(SMALL_RANKS, [96, 192, 384, 768, 1536], [125, 250, 500], 8),
}
# Lengths and steps of the paper's law on 8B models (arXiv 2605.30260).
LARGE = {
    "long_context": Grid(LARGE_RANKS, [250, 500, 1000, 2000, 4000], [500, 1000, 2000], 1),
    "phonebook": Grid(LARGE_RANKS, [1000, 2000, 4000, 8000], [2500, 5000, 10000], 4),
    "linear_rule": Grid(LARGE_RANKS, [384, 768, 1536, 3072], [250, 500, 1000], 8),
}


@dataclass(frozen=True)
class NewSearch:
    """User's choices for a new search; None where pmlray chooses.

    `records` and `text` are paths as the file will hold them. `target_tokens`: supervised tokens of
    each record, estimated by `guessed_tokens` where `tokens_guessed`. `prompt_format`: by default
    chat for large bases, plain for others.
    """

    name: str
    kind: TaskKind
    model_id: str
    revision: str | None
    layer: int | None = None
    gpu_hours: float | None = None
    text: str | None = None
    records: str | None = None
    columns: Columns | None = None
    target_tokens: Sequence[int] = ()
    tokens_guessed: bool = False
    prompt_format: Literal["plain", "chat"] | None = None


def guessed_tokens(targets: Sequence[str]) -> list[int]:
    """Estimate the tokens of each target without a tokenizer, rather too low."""
    return [max(1, math.floor(len(target) / CHARACTERS_PER_TOKEN)) for target in targets]


def search_yaml(wanted: NewSearch, source: ModelSource, file: str, schema: str) -> str:
    """Return the commented text of a search file.

    source: of the base model; file: its path, for the commands in the head; schema: reference in
    the language server's line.
    """
    geometry = source.geometry
    large = is_large(geometry)
    guessed = " (guessed: this base's tokenizer is not here)" if wanted.tokens_guessed else ""
    values: dict[str, object] = {
        "schema": schema,
        "file": file,
        "name": _scalar(wanted.name),
        "kind": wanted.kind,
        "headline": f"The memory law of {wanted.model_id} ({wanted.kind}).",
        "text": None if wanted.text is None else _scalar(wanted.text),
        "records": None if wanted.records is None else _scalar(wanted.records),
        "columns": None if wanted.columns is None else _named(wanted.columns),
        "n_records": len(wanted.target_tokens),
        "model": _scalar(wanted.model_id),
        "revision": None if wanted.revision is None else _scalar(wanted.revision),
        "layer": default_layer(geometry) if wanted.layer is None else wanted.layer,
        "n_layers": geometry.n_layers,
        "prompt_format": wanted.prompt_format or ("chat" if large else "plain"),
        "large": large,
        "grid": asdict(_grid(wanted, large)),
        "length_note": guessed,
    }
    device = "Device" if wanted.gpu_hours is not None else "GPU" if large else "CPU core"
    values["budget_note"] = f"{device} time inside the training loop; start-up is not counted."
    draft = _render(values, budget="gpu_seconds: 1.0", memft_seconds=1, whole="")
    spec = SearchSpec.model_validate_json(json.dumps(yaml.safe_load(draft)))
    whole = _grid_seconds(PreparedSearch(spec, source, TaskSource(wanted.kind, 0)), large)
    seconds = BUDGET_SHARE * whole
    if wanted.gpu_hours is not None:
        budget, seconds = f"gpu_hours: {wanted.gpu_hours:g}", 3600.0 * wanted.gpu_hours
    elif large:
        budget = f"gpu_hours: {_rounded(seconds / 3600.0):g}"
    else:
        budget = f"gpu_seconds: {_rounded(seconds):g}"
    memft = f"{_rounded(MEMFT_SHARE * seconds):g}"
    return _render(values, budget=budget, memft_seconds=memft, whole=_amount(whole, large))


def _grid(wanted: NewSearch, large: bool) -> Grid:
    if wanted.kind != "records":
        return (LARGE if large else SMALL)[wanted.kind]
    total, longest = sum(wanted.target_tokens), max(wanted.target_tokens)
    if len(wanted.target_tokens) == 1:
        # One long text, which may be cut anywhere.
        grid = (LARGE if large else SMALL)["long_context"]
        return replace(grid, seq_len=[n for n in grid.seq_len if n <= total] or [total])
    steps = default_steps(len(wanted.target_tokens))
    return Grid(
        LARGE_RANKS if large else SMALL_RANKS,
        sorted({max(longest, round(share * total)) for share in SUBSET_SHARES}),
        sorted({max(1, round(share * steps)) for share in SUBSET_SHARES}),
        BATCH_SIZE,
    )


def _grid_seconds(search: PreparedSearch, gpu: bool) -> float:
    cost = first_cost(search.settled(gpu), gpu)
    spec = search.spec
    return len(spec.replicates()) * sum(cost.predict(point) for point in spec.space.points())


def _render(values: dict[str, object], **more: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pmlray.study"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    keys = shipped("searches/README.md")
    return environment.get_template("search.yaml.j2").render(values, key_reference=keys, **more)


def _scalar(text: str) -> str:
    """Return a text as one YAML scalar, plain where that means the same."""
    plain = re.fullmatch(r"[A-Za-z./~][A-Za-z0-9_./@-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _named(columns: Columns) -> str:
    return f"{{query: {json.dumps(columns.query)}, target: {json.dumps(columns.target)}}}"


def _amount(seconds: float, large: bool) -> str:
    amount = seconds / 3600.0 if large else seconds
    return f"{_rounded(amount):g} {'GPU-hours' if large else 'core-seconds'}"


def _rounded(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")
