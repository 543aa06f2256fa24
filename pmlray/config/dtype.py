"""Choice of a base's dtype by the device that trains, without loading torch."""

from __future__ import annotations

from pathlib import Path

from pmlray.config.model_spec import Dtype, Model
from pmlray.errors import StoreError

# Of x86's AVX-512 and AMX, and of ARM, as Linux and torch name them.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
CPU_INFO = Path("/proc/cpuinfo")


def cpu_multiplies_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Return whether this machine's CPU has instructions for products of bfloat16 that torch uses.

    Only Linux says so in a file. On a Mac torch comes without oneDNN, which has those products.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        # x86's name for them, and ARM's.
        if name.strip() in ("flags", "Features"):
            return not set(BFLOAT16_INSTRUCTIONS).isdisjoint(value.split())
    return False


def device_dtype(gpu: bool) -> Dtype:
    """bfloat16 on a GPU, and on this machine's CPU where that multiplies it; else float32."""
    return "bfloat16" if gpu or cpu_multiplies_bfloat16() else "float32"


def settle(model: Model, gpu: bool, kept: Model | None = None) -> Model:
    """The model with what `dtype: auto` is: what `kept` was begun with, else what was settled
    before, else the device's. A dtype that was asked for stays."""
    if model.dtype != "auto":
        return model
    before = None if kept is None else kept.resolved or kept.dtype
    found = before if before is not None and before != "auto" else model.resolved
    return model.model_copy(update={"resolved": found or device_dtype(gpu)})


def check_same_dtype(folder: Path, study: str, kept: Model, asked: Model) -> None:
    """StoreError where the study of a store was begun in another dtype than is asked for now: ids
    do not tell `auto` from a dtype that is named."""
    if kept.base_dtype != asked.base_dtype:
        raise StoreError(
            f"{folder} holds the {study} of a base in {kept.base_dtype}, not {asked.base_dtype};"
            " leave model.dtype out to continue it, or choose another --store"
        )
