"""Whether a base's tokenizer has a chat template, as transformers finds one, but without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pmlray.config.bases.hub import optional_file
from pmlray.config.bases.models import PULLABLE, SMOLLM2, ModelSource
from pmlray.config.bases.safetensors_header import read_json
from pmlray.errors import ModelError

TEMPLATE_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"
KEY = "chat_template"


def has_chat_template(model_id: str, source: ModelSource) -> bool:
    """Return whether conversations can be rendered by a base's own chat template.

    True too where the hub, which alone could tell, cannot be asked: a base that turns out to have
    none is refused by that reason once it is loaded. ModelError where its settings are damaged.
    """
    if source.folder is not None:
        files = [source.folder / name for name in (TEMPLATE_FILE, SETTINGS_FILE)]
        return _tells_template(*(file if file.is_file() else None for file in files))
    if model_id in PULLABLE:
        # Not pulled yet: of the two, the one with random weights is made without a template.
        return model_id == SMOLLM2
    assert source.revision is not None
    try:
        files = [
            optional_file(model_id, n, source.revision) for n in (TEMPLATE_FILE, SETTINGS_FILE)
        ]
    except ModelError:
        return True
    return _tells_template(*files)


def _tells_template(template: Path | None, settings: Path | None) -> bool:
    """Return whether one of a tokenizer's two files, None where it is missing, has a template."""
    if template is not None:
        return True
    found = None if settings is None else read_json(settings)
    told = cast("Mapping[str, Any]", found).get(KEY) if isinstance(found, dict) else None
    if isinstance(told, list):
        # Several by name, of which a conversation without tools takes this one.
        return any(_name(row) == "default" for row in cast("list[object]", told))
    return isinstance(told, str) and bool(told)


def _name(row: object) -> object:
    return cast("Mapping[str, Any]", row).get("name") if isinstance(row, dict) else None
