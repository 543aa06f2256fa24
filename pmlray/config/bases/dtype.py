"""Choice of a base's dtype by the training device, without loading torch."""

from __future__ import annotations

from pathlib import Path

from pmlray.config.bases.model_spec import Dtype, Model
from pmlray.errors import StoreError

# CPU flags of bfloat16 instructions (x86's AVX-512 and AMX, and ARM), as Linux and torch name them.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
CPU_INFO = Path("/proc/cpuinfo")


def cpu_multiplies_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Return whether this machine's CPU has instructions for products of bfloat16 that torch uses.

    Only Linux lists them in a file. On a Mac torch comes without oneDNN, which has those products.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        # Name of the field on x86, and on ARM.
        if name.strip() in ("flags", "Features"):
            return not set(BFLOAT16_INSTRUCTIONS).isdisjoint(value.split())
    return False


def device_dtype(gpu: bool) -> Dtype:
    """Return bfloat16 on a GPU, or on this machine's CPU where that multiplies it; else float32."""
    return "bfloat16" if gpu or cpu_multiplies_bfloat16() else "float32"


def settle(model: Model, gpu: bool, kept: Model | None = None) -> Model:
    """Return the model with `dtype: auto` resolved; a dtype named explicitly is unchanged.

    The result is the dtype of `kept`, the stored model, else the one resolved before, else the
    device's.
    """
    if model.dtype != "auto":
        return model
    before = None if kept is None else kept.resolved or kept.dtype
    found = before if before is not None and before != "auto" else model.resolved
    return model.model_copy(update={"resolved": found or device_dtype(gpu)})


def check_same_dtype(folder: Path, study: str, kept: Model, asked: Model) -> None:
    """Raise StoreError where a store's study was begun in another dtype than is requested now.

    The ids of studies do not distinguish `auto` from a dtype that is named.
    """
    if kept.base_dtype != asked.base_dtype:
        raise StoreError(
            f"{folder} holds the {study} of a base in {kept.base_dtype}, not {asked.base_dtype};"
            " leave model.dtype out to continue it, or choose another --store"
        )
