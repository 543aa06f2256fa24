"""A few steps of a pack in a process of its own, which begins as a worker does.

In a process that has torch already, how its threads wait can no longer be chosen: beside busy
neighbours steps take up to several times the CPU seconds there.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR
from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.live_packs import Calibration, calibration_of, put_calibration
from pmlray.types import Pack

# Loading a base from a slow disk is most of it.
LONGEST_SECONDS = 300.0
# A process's first steps are slower, and many of a small model's are over in no time.
MOST_STEPS = 300


def time_steps_apart(
    search: PreparedSearch, pack: Pack, gpu: bool, cpus: int, seconds: float
) -> Calibration | None:
    """Return the cost of a few steps on this machine's GPU, or on so many cores; None without
    such a device, or where no step ended. seconds: of timed steps, wall."""
    # From wherever this process has its modules.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    bound_waits(environment)
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", **CPU_ALLOCATOR}
    with TemporaryDirectory() as folder:
        asked = pickle.dumps((search, pack, gpu, cpus, seconds, Path(folder)))
        command = [sys.executable, "-m", __name__]
        try:
            # What it prints is no result of this process.
            subprocess.run(
                command, input=asked, stdout=subprocess.DEVNULL, env=environment,
                timeout=LONGEST_SECONDS, check=True,
            )  # fmt: skip
        except (subprocess.SubprocessError, OSError):
            return None
        return calibration_of(Path(folder))


def main() -> None:
    """Time the steps that standard input asks for, in this process."""
    search, pack, gpu, cpus, seconds, folder = pickle.load(sys.stdin.buffer)
    import torch

    from pmlray.engine.calibrate import time_steps
    from pmlray.engine.training.step import TorchStepper

    if torch.cuda.is_available() != gpu:
        return
    if not gpu:
        torch.set_num_threads(cpus)
    found = time_steps(search, pack, TorchStepper, seconds=seconds, most_steps=MOST_STEPS)[1]
    put_calibration(folder, found)


if __name__ == "__main__":
    main()
