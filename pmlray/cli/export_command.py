"""`pmlray export`: an adapter as a whole model."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import typer

from pmlray.api.environment.process import train_extra
from pmlray.cli.output import JSON_OPTION, emit, tell
from pmlray.config.bases.model_spec import DtypeChoice


def export(
    adapter: Path = typer.Argument(
        ..., help="An adapter's folder: of pmlray size, of a store, or one that PEFT saved."
    ),
    out: Path = typer.Argument(..., help="Folder to make: weights, settings and tokenizer."),
    model: str = typer.Option(
        None, help="Base model: a pulled name, a hub id or a folder; default: the adapter's own."
    ),
    revision: str = typer.Option(
        None, help="Commit of a hub model; default: the adapter's, else its default branch's."
    ),
    dtype: DtypeChoice = typer.Option(
        "auto", help="Of the saved weights; auto: as the adapter was trained, else as the base's."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Merge an adapter into its base: a model that transformers, vLLM and others load alone.

    For llama.cpp or Ollama make GGUF of it: python convert_hf_to_gguf.py OUT (of llama.cpp).
    """
    with train_extra():
        from pmlray.api.adapters.export import export_adapter

    with contextlib.redirect_stdout(sys.stderr):
        merged = export_adapter(adapter, out, model, revision, dtype, tell)
    found = {
        "folder": str(merged.folder),
        "dtype": merged.dtype,
        "bytes": merged.n_bytes,
        "logits_off": merged.logits_off,
    }
    text = (
        f"{out}: {merged.n_bytes / 2**20:.0f} MiB in {merged.dtype}; its logits are those of the"
        f" adapter within {100 * merged.logits_off:.2g} %, so that rounding may change a close"
        " answer: ask it for your records once"
    )
    emit(found, text, as_json)
