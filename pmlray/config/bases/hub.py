"""Base models on the Hugging Face hub: commit, sizes and headers, without downloading weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pmlray.config.bases.checks import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    check_config,
    check_folder,
    check_names,
    check_tensors,
    check_tokenizer,
)
from pmlray.config.bases.geometry import Geometry, geometry_from_config
from pmlray.config.bases.safetensors_header import INDEX, WEIGHTS, Tensor, joined, read_json, shards
from pmlray.errors import ModelError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Longest wait for an answer of the hub.
HUB_SECONDS = 10.0


class _Unreachable(Exception):
    """The hub gave no answer, or not to this user; the message says why."""


def find_on_hub(
    model_id: str, revision: str | None, known: Geometry | None
) -> tuple[str, Geometry]:
    """Find a hub model's commit and sizes, and check its files as far as headers tell.

    Args:
        model_id: owner and name.
        revision: a commit, or a branch or tag, which is resolved to its commit now; None for the
            hub's default branch.
        known: sizes of the model, where pmlray has them; with them a commit is accepted where the
            hub cannot be asked, and its files are checked when they are loaded.

    Returns:
        The commit hash and the sizes.

    Raises:
        ModelError: the hub has no such model or revision, or cannot be reached and has to be, or
            the model's files are not what its config says.
    """
    if revision is None or COMMIT.fullmatch(revision) is None:
        revision = _commit(model_id, revision)
    if (folder := _whole_snapshot(model_id, revision)) is not None:
        return revision, check_folder(folder)
    try:
        return revision, _checked(model_id, revision)
    except _Unreachable as error:
        if known is not None:
            return revision, known
        where = f"{model_id}@{revision}"
        return revision, _by_cached_config(model_id, revision, where, error)


def _commit(model_id: str, revision: str | None) -> str:
    """Return the commit of a branch or tag, or of the default branch, asked of the hub now."""
    try:
        return _info(model_id, revision)[0]
    except _Unreachable as error:
        why = (
            f"model.revision of {model_id} is not given"
            if revision is None
            else f"model.revision {revision!r} of {model_id} is not the hash of a commit"
        )
        raise ModelError(
            f"{why}, and the hub, which knows its commit, could not be asked ({error}); give the"
            " commit's hash of 40 digits as revision, or try again where the hub can be reached"
        ) from error


@cache
def _checked(model_id: str, commit: str) -> Geometry:
    """Return the sizes of a model whose files at a commit, which never change, are right."""
    where, api = f"{model_id}@{commit}", _api()
    _, names = _info(model_id, commit)
    if CONFIG not in names:
        check_names(names, where)
        raise ModelError(f"{where} has no {CONFIG}: it is no model that transformers can load")
    config = read_json(_fetched(api, model_id, CONFIG, commit))
    geometry = geometry_from_config(config, where)
    check_config(config, geometry, where)
    check_names(names, where)
    check_tensors(config, geometry, _tensors(api, model_id, commit, names), where)
    if TOKENIZER in names:
        check_tokenizer(_fetched(api, model_id, TOKENIZER, commit), geometry.vocab, where)
    return geometry


def _info(model_id: str, revision: str | None) -> tuple[str, Collection[str]]:
    """Return the commit and the names of the files of a revision, None: of the default branch."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" at {revision}"

    def refused(error: Exception) -> ModelError:
        return ModelError(
            f"the hub has no model {model_id}{at} that this user may see"
            f" ({_first_line(error)}); correct model.id or model.revision, or log in with: hf auth"
            " login"
        )

    try:
        info = _asked(lambda: _api().model_info(model_id, revision=revision, timeout=HUB_SECONDS))
    except HFValidationError as error:
        raise refused(error) from error
    except _Unreachable as error:
        why = error.__cause__
        absent = isinstance(why, (RepositoryNotFoundError, RevisionNotFoundError))
        if absent and not isinstance(why, GatedRepoError):
            raise refused(error) from error
        raise
    if info.sha is None or COMMIT.fullmatch(info.sha) is None:
        raise ModelError(f"the hub does not tell the commit of {model_id}{at}")
    return info.sha, [file.rfilename for file in info.siblings or ()]


def _tensors(api: HfApi, model_id: str, commit: str, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors in the headers of a model's files of weights."""
    from huggingface_hub.errors import SafetensorsParsingError

    where = f"{model_id}@{commit}"
    files = [WEIGHTS]
    if WEIGHTS not in names:
        files = shards(read_json(_fetched(api, model_id, INDEX, commit)), f"{where}: {INDEX}")
        absent = [name for name in files if name not in names]
        if absent:
            raise ModelError(
                f"{where}: {INDEX} names files that the hub does not have ({', '.join(absent)});"
                " choose another revision"
            )

    def header(file: str) -> dict[str, Tensor]:
        try:
            found = _asked(
                lambda: api.parse_safetensors_file_metadata(
                    model_id, file, revision=commit, timeout=HUB_SECONDS
                )
            )
        except SafetensorsParsingError as error:
            raise ModelError(f"{where}: {file} is no safetensors file ({error})") from error
        return {name: Tensor(t.dtype, tuple(t.shape)) for name, t in found.tensors.items()}

    return joined(((file, header(file)) for file in files), where)


def fetched_file(model_id: str, name: str, revision: str) -> Path:
    """Return a small file of a model, from this machine's cache or else from the hub.

    ModelError where it is in neither; the wait for a hub that does not answer is short.
    """
    found = optional_file(model_id, name, revision)
    if found is None:
        raise ModelError(
            f"{model_id}@{revision} has no {name} on the hub; choose another revision, or give a"
            " folder that holds the model"
        )
    return found


def optional_file(model_id: str, name: str, revision: str) -> Path | None:
    """Return a small file of a model as `fetched_file` does; None where the model has none."""
    if (kept := _cached(model_id, name, revision)) is not None:
        return kept
    # What a snapshot that is here as a whole lacks, the model has not.
    if _whole_snapshot(model_id, revision) is not None:
        return None
    try:
        # Asked first, since a download tries a dead hub again and again for half a minute.
        _, names = _info(model_id, revision)
        return _fetched(_api(), model_id, name, revision) if name in names else None
    except _Unreachable as error:
        raise ModelError(
            f"cannot read {name} of {model_id}@{revision} from the hub: {error}; try again where it"
            " can be reached, or give a folder that holds the model"
        ) from error


def _fetched(api: HfApi, model_id: str, name: str, commit: str) -> Path:
    """Return a small file of a model, from the hub's cache on this machine if it is there."""
    from huggingface_hub import hf_hub_download

    path = _asked(
        lambda: hf_hub_download(
            model_id, name, revision=commit, etag_timeout=HUB_SECONDS, endpoint=api.endpoint
        )
    )
    return Path(path)


def _asked(question: Callable[[], T]) -> T:
    """Return the hub's answer; _Unreachable, with its cause, where there is none for this user."""
    try:
        return question()
    except hub_failures() as error:
        raise _Unreachable(_first_line(error)) from error


def hub_failures() -> tuple[type[Exception], ...]:
    """Return the errors that requests to the hub end with where they fail."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base error of the library's HTTP client, whose package differs between versions.
    of_client: type[Exception] = cast("Any", HfHubHTTPError).__mro__[1]
    return of_client, OSError


def _whole_snapshot(model_id: str, commit: str) -> Path | None:
    """Return the hub's cached folder of a commit if its files are all there, else None."""
    found = _cached(model_id, CONFIG, commit)
    if found is None:
        return None
    folder = found.parent
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    if (folder / WEIGHTS).is_file():
        return folder
    if not (folder / INDEX).is_file():
        return None
    files = shards(read_json(folder / INDEX), str(folder / INDEX))
    return folder if all((folder / name).is_file() for name in files) else None


def _cached(model_id: str, name: str, commit: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_id, name, revision=commit)
    except HFValidationError as error:
        raise ModelError(f"model.id {model_id!r} is no id of the hub: {error}") from error
    return Path(found) if isinstance(found, str) else None


def _by_cached_config(model_id: str, commit: str, where: str, error: _Unreachable) -> Geometry:
    """Return the sizes by the cached config of a model whose hub cannot be asked."""
    path = _cached(model_id, CONFIG, commit)
    if path is None:
        raise ModelError(
            f"cannot read config.json of {model_id} at {commit}: the hub could not be asked"
            f" ({error}); try again where it can be reached, log in with hf auth login if the model"
            " is gated, or give a folder that holds the model"
        ) from error
    config = read_json(path)
    geometry = geometry_from_config(config, where)
    check_config(config, geometry, where)
    return geometry


def _api() -> HfApi:
    # Imported late: it takes a third of a second, which bases in folders do not need.
    from huggingface_hub import HfApi

    return HfApi()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
