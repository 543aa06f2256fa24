"""Cost calibration in a subprocess that is set up like a training worker.

The wait policy of torch's threads cannot be changed once torch is imported, and with the default
policy steps beside busy processes take up to several times the CPU seconds.
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
from pmlray.errors import ModelError
from pmlray.live_packs import Calibration, calibration_of, put_calibration
from pmlray.types import Pack

# Mostly for loading a base model from a slow disk.
LONGEST_SECONDS = 300.0
# Enough to outweigh a process's slower first steps; those of a small model are short.
MOST_STEPS = 300
# File with the reason why the base was refused.
REFUSED = "refused.txt"


def time_steps_apart(
    search: PreparedSearch, pack: Pack, gpu: bool, cpus: int, seconds: float
) -> Calibration | None:
    """Return the cost of a few steps on this machine's GPU, or on `cpus` cores.

    None without such a device, or where no step ended. seconds: wall seconds of timed steps after
    which few steps are enough. ModelError where the base is refused when it is loaded.
    """
    # The subprocess imports modules from the same paths as this process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    bound_waits(environment)
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", **CPU_ALLOCATOR}
    with TemporaryDirectory() as folder:
        asked = pickle.dumps((search, pack, gpu, cpus, seconds, Path(folder)))
        command = [sys.executable, "-m", __name__]
        try:
            # The subprocess's stdout must not mix with this process's output.
            subprocess.run(
                command, input=asked, stdout=subprocess.DEVNULL, env=environment,
                timeout=LONGEST_SECONDS, check=True,
            )  # fmt: skip
        except (subprocess.SubprocessError, OSError):
            return None
        if (refused := Path(folder) / REFUSED).is_file():
            raise ModelError(refused.read_text("utf-8"))
        return calibration_of(Path(folder))


def main() -> None:
    """Time the steps requested, as a pickle, on standard input."""
    search, pack, gpu, cpus, seconds, folder = pickle.load(sys.stdin.buffer)
    import torch

    from pmlray.engine.calibrate import time_steps
    from pmlray.engine.training.step import TorchStepper

    if torch.cuda.is_available() != gpu:
        return
    if not gpu:
        torch.set_num_threads(cpus)
    try:
        found = time_steps(search, pack, TorchStepper, seconds=seconds, most_steps=MOST_STEPS)[1]
    except ModelError as error:
        (folder / REFUSED).write_text(str(error), "utf-8")
        return
    put_calibration(folder, found)


if __name__ == "__main__":
    main()
