"""A way of training in a process of its own, one block of optimiser steps at a time.

The parent starts one child for each way and lets them take turns, so that what the machine does
meanwhile meets all of them alike, and each peak of memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR
from scripts.bench.speed.work import Work

ROOT = Path(__file__).resolve().parents[3]
STATUS = Path("/proc/self/status")
RAPL = Path("/sys/class/powercap")


class Enough(Exception):
    """Ends a way's loop, whatever framework drives it."""


class Pace(Protocol):
    """Who counts a way's steps."""

    def stepped(self, replayed: bool = False) -> None:
        """After every optimiser step; `replayed` where a captured graph took it."""
        ...


class Pacer:
    """The child's side: `stepped` after every optimiser step reports and waits at a block's end.

    The first block is the first step; its report has the seconds since the parent began.
    """

    def __init__(self, orders: TextIO, reports: TextIO, spawned: float) -> None:
        self._orders, self.reports = orders, reports
        self._left = 1
        self._steps = 1
        self._replayed = 0
        self._mark = time.perf_counter()
        self._used = time.process_time()
        self._joules = energy_joules()
        self.spawned = spawned
        self._peak = 0

    def run(self, train: Callable[[], object]) -> None:
        """Train until the parent has had enough, and report what the process took."""
        try:
            train()
        except Enough:
            # Read once: a second reading may be higher.
            steps = peak_memory()
            self._say({"peak_memory_bytes": max(self._peak, steps), "step_memory_bytes": steps})

    def stepped(self, replayed: bool = False) -> None:
        """Note a step; Enough when the parent has asked for the end."""
        self._left -= 1
        self._replayed += replayed
        if self._left:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        report: dict[str, Any] = {"steps": self._steps, "at": time.time() - self.spawned}
        report["seconds"] = time.perf_counter() - self._mark
        report["cpu_seconds"] = time.process_time() - self._used
        report["replayed"] = self._replayed
        if not self._peak:
            # From here on peaks are those of steps alone, without loading the model.
            self._peak = peak_memory()
            forget_peak_memory()
        now = energy_joules()
        report["joules"] = None if now is None or self._joules is None else now - self._joules
        self._say(report)
        order = json.loads(self._orders.readline() or '{"steps": 0}')
        if not order["steps"]:
            raise Enough
        self._left = self._steps = order["steps"]
        self._replayed = 0
        self._joules = energy_joules()
        self._used = time.process_time()
        self._mark = time.perf_counter()

    def absent(self, reason: str) -> None:
        """The only report of a way that is not installed."""
        self._say({"not_installed": reason})

    def _say(self, report: dict[str, Any]) -> None:
        self.reports.write(json.dumps(report) + "\n")
        self.reports.flush()


class Child:
    """The parent's side. environment: variables that this child has beside its way's."""

    def __init__(self, way: str, work: Work, environment: Mapping[str, str] | None = None) -> None:
        self.way, self.work = way, work
        self.taken = 1
        # Not a pipe: what nobody reads would stop the child once the pipe is full.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the child
        arguments = [way, work.to_json(), repr(time.time())]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.speed.ways", *arguments],
            cwd=ROOT,
            env={**environment_of(way), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        first = self._hear()
        self.not_installed: str | None = first.get("not_installed")
        self.start_seconds: float = first.get("at", float("nan"))

    def block(self, steps: int) -> dict[str, Any]:
        """Let it take so many steps."""
        self._tell(steps)
        self.taken += steps
        return self._hear()

    def end(self) -> dict[str, Any]:
        """Its last report."""
        self._tell(0)
        last = self._hear()
        self.close()
        return last

    def close(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._said.close()

    def _tell(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read()
            raise RuntimeError(f"{self.way} ended before its time on {self.work}\n{said[-3000:]}")
        return json.loads(line)


def environment_of(way: str) -> dict[str, str]:
    """A child's environment; pmlray's own has what a search gives its workers."""
    own = way.startswith("pmlray") and not torch.cuda.is_available()
    return {**os.environ, **(CPU_ALLOCATOR if own else {})}


def peak_memory() -> int:
    """The most memory, in bytes, since `forget_peak_memory`: of the GPU where there is one, else
    resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak_memory() -> None:
    """Count the peak anew from what is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # See proc(5): 5 resets the peak resident set size.
        Path("/proc/self/clear_refs").write_text("5")


def energy_joules() -> float | None:
    """A counter of the machine's energy: the GPU's, else the processor packages'; None if neither
    can be read."""
    if torch.cuda.is_available():
        return _gpu_joules()
    counters = [
        path / "energy_uj" for path in RAPL.glob("intel-rapl:*") if path.name.count(":") == 1
    ]
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except OSError:
        return None


def _gpu_joules() -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:
        return None
