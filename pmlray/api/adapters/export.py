"""Export of an adapter as a whole model: merged into its base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pmlray.api.adapters.base import base_of, trained_with
from pmlray.config.bases.model_spec import Dtype, DtypeChoice
from pmlray.config.store_folder import local_folder
from pmlray.engine.adapters.merge import Merged, merge_adapter
from pmlray.engine.adapters.stored_adapter import read_mergeable
from pmlray.errors import SpecError


def export_adapter(
    adapter: Path,
    out: Path,
    model: str | None,
    revision: str | None,
    dtype: DtypeChoice,
    say: Callable[[str], None],
) -> Merged:
    """Merge an adapter into its base and save the model, as `pmlray export` does.

    Args:
        adapter: folder of the adapter.
        out: folder to make.
        model, revision: of the base; None: the adapter's own.
        dtype: of the saved weights; auto: that of training where it is known, else the base's own.
        say: called with one line before anything is loaded.

    Raises:
        SpecError: `out` exists, or is no folder.
        ModelError, StoreError: as of `base_of` and `merge_adapter`.
    """
    local_folder(out, "OUT")
    if out.exists():
        raise SpecError(f"{out} is there already; choose another folder, or move it away")
    mergeable = read_mergeable(adapter)
    known = trained_with(adapter)
    # The base is loaded as in training, whatever the merged weights are rounded to.
    base, source = base_of(adapter, mergeable, known, model, revision, "auto")
    wanted: Dtype | None = known.get("dtype") if dtype == "auto" else dtype
    if "dtype" not in known:
        base = base.model_copy(update={"dtype": "float32"})
    say(f"merging {adapter} into {base.id}, and comparing what was saved")
    return merge_adapter(mergeable, base, source, wanted, out)
