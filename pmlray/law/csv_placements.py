"""Placements of a CSV's rows, from their names and their adapters' parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import LawData
from pmlray.law.placements import Placement, named_placement

# Parameters of one rank may differ by rounding in a table, not by more than this share.
ROUNDING = 1e-3
# Name of the one placement of a table that gives none.
NAMELESS = "adapter"


def with_placements(
    source: Path, data: LawData, names: Sequence[str], params: Sequence[float]
) -> LawData:
    """Return the points with their placements.

    names: of each row's placement, NAMELESS in a table without the column. params: trainable
    parameters of each row's adapter, NaN where they are not known. Raises DataError naming the file
    and what to do about it.
    """
    params_N = np.array(params, dtype=float)
    known = np.isfinite(params_N)
    distinct = tuple(dict.fromkeys(names))
    if not known.any():
        if len(distinct) > 1:
            raise DataError(
                f"{source}: {len(distinct)} placements ({', '.join(distinct[:3])}) and no column"
                " adapter_params: ranks at different places compare by their trainable parameters,"
                " so give them in all rows, or fit each placement in a file of its own"
            )
        return data
    if not known.all():
        raise DataError(
            f"{source}: adapter_params is known in {int(known.sum())} of {len(data)} rows; give it"
            " in all, or leave the column out"
        )
    per_rank_N = params_N / data.lora_rank
    name_N = np.array(names)
    by_name: dict[str, Placement] = {}
    for name in distinct:
        of_name = per_rank_N[name_N == name]
        least, most = float(of_name.min()), float(of_name.max())
        if least <= 0 or most > least * (1.0 + ROUNDING):
            raise DataError(
                f"{source}: adapter_params of the placement {name!r} are {least:.6g} to {most:.6g}"
                " a rank, where a LoRA adapter at one placement has the same number for each: give"
                " adapters in other places another name in a column placement, or leave the rank"
                " out, and the law is one of parameters"
            )
        by_name[name] = named_placement(name, float(np.median(of_name)))
    return data.placed([by_name[name] for name in names])
