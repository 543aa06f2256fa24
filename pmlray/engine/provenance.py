"""Provenance of an observation, common to all training backends."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.runtime.device_clock import CLOCKS
from pmlray.memory import MemorySet
from pmlray.types import Pack, PlannedRun
from pmlray.version import __version__

VERSIONED = ("torch", "transformers", "peft")


def pack_provenance(
    search: PreparedSearch,
    pack: Pack,
    device: torch.device,
    devices: int,
    backend: Mapping[str, str],
) -> dict[str, Any]:
    """Return the provenance that the runs of a pack share.

    devices: number of GPUs or CPU cores used. backend: names and versions of the training
    frameworks.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "search_id": search.spec.search_id,
        "pack_id": pack.pack_id,
        "n_in_pack": len(pack.runs),
        "model": search.source.identity,
        "dtype": search.spec.model.base_dtype,
        "device": device.type,
        "device_name": name or platform.machine(),
        "devices": devices,
        "gpu_seconds_unit": "GPU" if device.type == "cuda" else "CPU core",
        "gpu_seconds_clock": CLOCKS[device.type],
        # On a cluster pmlray is uploaded source, not an installed package with metadata.
        "versions": {"pmlray": __version__}
        | {package: version(package) for package in VERSIONED}
        | dict(backend),
    }


def start_provenance(search: PreparedSearch, start_loss: float) -> dict[str, Any]:
    """Return the provenance of a run that began with an adapter, and nothing of any other.

    start_loss: with that adapter, nats per supervised token.
    """
    if search.start is None:
        return {}
    return {"from_adapter": {**search.start.facts(), "start_loss": start_loss}}


def run_provenance(search: PreparedSearch, run: PlannedRun, memory: MemorySet) -> dict[str, Any]:
    """Return the provenance of a single run that ends now."""
    per_rank = search.params_per_rank_of(run.point)
    return {
        "adapter_params_per_rank": per_rank,
        "adapter_params": run.point.lora_rank * per_rank,
        "placement": placement_facts(search, run.point),
        "content_hash": memory.content_hash,
        "n_records": len(memory.records),
        "end_id": memory.records[0].end_id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
