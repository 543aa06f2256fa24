"""Adapters too large for the memory of this machine, found before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pmlray.config import ClusterProfile
from pmlray.config.adapters.adapter_memory import check_adapter_fits
from pmlray.config.cluster_address import LOCAL, ray_address
from pmlray.config.prepared_search import PreparedSearch
from pmlray.types import DesignPoint


def check_memory(
    search: PreparedSearch,
    points: Iterable[DesignPoint],
    profile: ClusterProfile,
    address: str | None,
) -> None:
    """Check that a pack's share of this machine's memory holds each point's adapter; ModelError
    otherwise.

    Of a GPU, and of other machines (`address`, RAY_ADDRESS), a pack's worker checks it before it
    loads the base.
    """
    if ray_address(address) != LOCAL or profile.gpus_per_pack or profile.workers_per_pack > 1:
        return
    from pmlray.engine.runtime.device_memory import main_memory

    cores = profile.cpus_per_pack or os.cpu_count() or 1
    check_adapter_fits(search, points, main_memory(cores))
