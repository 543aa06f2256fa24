"""Steps of a pack captured once as a CUDA graph and replayed, where their shapes stay the same.

A step over few tokens is over sooner on a GPU than Python launches its many kernels; a graph is
launched as one. What is captured is `PackStep`: forward, the tokens' weights with the window's
state, backward, update. Outside stay the choice of rows, which are then written into a
`FixedBatch`, dropout's draws from each adapter's own generator, learning rates, and all that is
noted of a step.

**Never run on a GPU so far.** The tests record and replay steps on a CPU, kernel by kernel, at
fixed addresses like a graph (`tests/integration/recording.py`); that shows that nothing in a step
is baked in or waits for the device, not that CUDA captures it. So a graph is not trusted: its first
replay, and those after 2, 4, 8, ... replays, are taken twice, also kernel by kernel, and compared.
Where capture fails or a replay differs the pack goes on without, from the step taken kernel by
kernel, and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pmlray.engine.kernels.numerics import difference
from pmlray.engine.model.batches import MicroBatch, Row
from pmlray.engine.scheduling.members import Member
from pmlray.engine.training.static_batch import Fit, FixedBatch, Layout, Layouts
from pmlray.engine.training.step import Dropout, EagerStep, PackStep, StepFound, Taken

log = logging.getLogger(__name__)

# Steps that a layout has to have had before it is captured: they warm up what is made lazily, and
# tell layouts that stay from those that change all the time.
STEPS_BEFORE_CAPTURE = 3
# A step over more keeps the device busy for longer than its launches take (by arithmetic one of
# Qwen3-8B does over a few hundred), and a graph's memory stands beside that of all other work.
MOST_POSITIONS = 4096
# Positions with the padding to fixed places, over those without.
MOST_PADDING = 1.25


class Recorder(Protocol):
    """Captures what a step does to the device."""

    def run(self, step: Callable[[], StepFound]) -> StepFound:
        """Take the step, kernel by kernel, where it could be captured."""
        ...

    def record(self, step: Callable[[], StepFound]) -> tuple[StepFound, Callable[[], None]]:
        """Capture a step: its outputs, and a function that replays it; RuntimeError where that
        fails."""
        ...


class CudaGraphs:
    """A Recorder by torch.cuda.CUDAGraph, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, step: Callable[[], StepFound]) -> StepFound:
        """See Recorder."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = step()
        current.wait_stream(self._stream)
        return found

    def record(self, step: Callable[[], StepFound]) -> tuple[StepFound, Callable[[], None]]:
        """See Recorder."""
        graph = torch.cuda.CUDAGraph()
        # The outer one, since `graph` leaves its stream in force where its capture fails.
        with (
            torch.cuda.stream(self._stream),
            # Other threads, such as NCCL's watchdog, may ask the device meanwhile.
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            found = step()
        return found, graph.replay


@dataclass
class _Graph:
    found: StepFound
    replay: Callable[[], None]
    replays: int = 0


class _FixedStep:
    """A step over the rows of one layout: called, it takes the step from what was loaded last."""

    def __init__(
        self, step: PackStep, layout: Layout, rows: Sequence[Row], rate_S: Tensor, dropout: Dropout
    ) -> None:
        self.layout = layout
        self.taken = 0
        self.graph: _Graph | None = None
        self._step, self._batch = step, FixedBatch(layout, rows[0], dropout)
        self._rate_S = torch.empty_like(rate_S)

    @property
    def batches(self) -> tuple[MicroBatch, ...]:
        """The micro-batches loaded last."""
        return (self._batch.batch,)

    def load(self, rows: tuple[Row, ...], rate_S: Tensor) -> None:
        """Write the next step's inputs where the graph reads them."""
        self._batch.load(rows)
        self._rate_S.copy_(rate_S)

    def __call__(self) -> StepFound:
        return self._step(self.batches, lambda _batch: self._batch.keep_TD, self._rate_S)


class CapturedStep:
    """Takes steps as `EagerStep` does, as replays of a graph from a layout's fourth step on.

    There is one graph at a time: rows that leave or enter make another layout.
    """

    def __init__(
        self,
        step: PackStep,
        eager: EagerStep,
        dropout: Dropout,
        layouts: Layouts,
        recorder: Recorder,
    ) -> None:
        self._step, self._eager, self._dropout = step, eager, dropout
        self._layouts, self._recorder = layouts, recorder
        self._trusted = True
        self._rows: tuple[Row, ...] = ()
        self._fit = Fit((), (), 0, 1.0)
        self._fixed: _FixedStep | None = None

    def __call__(self, rows: tuple[Row, ...], rate_S: Tensor) -> Taken:
        """Take a step over the rows at each slot's learning rate."""
        if rows != self._rows:
            self._rows, self._fit = rows, self._layouts.of(rows)
        fit = self._fit
        if not self._trusted or fit.positions > MOST_POSITIONS or fit.padding > MOST_PADDING:
            self._fixed = None
            return self._eager(rows, rate_S)
        if self._fixed is None or fit.layout != self._fixed.layout:
            # The last one's memory is free before the next one's is taken.
            self._fixed = None
            self._fixed = _FixedStep(self._step, fit.layout, fit.rows, rate_S, self._dropout)
        self._fixed.load(fit.rows, rate_S)
        found, replayed = self._take(self._fixed)
        return Taken(self._fixed.batches, found, replayed)

    def _take(self, fixed: _FixedStep) -> tuple[StepFound, bool]:
        if fixed.graph is None and fixed.taken == STEPS_BEFORE_CAPTURE:
            fixed.graph = self._captured(fixed)
        fixed.taken += 1
        if fixed.graph is None:
            return self._recorder.run(fixed), False
        fixed.graph.replays += 1
        if fixed.graph.replays & (fixed.graph.replays - 1) == 0:
            return self._checked(fixed, fixed.graph)
        fixed.graph.replay()
        return fixed.graph.found, True

    def _captured(self, fixed: _FixedStep) -> _Graph | None:
        before = _copies(self._step.state())
        try:
            graph = _Graph(*self._recorder.record(fixed))
        except RuntimeError as error:
            self._trusted = False
            self._step.drop_gradients()
            reason = str(error).partition("\n")[0]
            log.warning("steps are not captured as a CUDA graph, and go on without: %s", reason)
            graph = None
        _put(self._step.state(), before)
        return graph

    def _checked(self, fixed: _FixedStep, graph: _Graph) -> tuple[StepFound, bool]:
        """Take a step kernel by kernel and as a replay, which counts if it is the same."""
        state = self._step.state()
        before = _copies(state)
        eager = self._recorder.run(fixed)
        after = _copies(state)
        _put(state, before)
        graph.replay()
        why = difference(before, after, state)
        why = why or difference({}, _by_name(eager), _by_name(graph.found))
        if why is None:
            return graph.found, True
        log.warning("the CUDA graph of steps is dropped, and they go on without: %s", why)
        self._trusted = False
        _put(state, after)
        return eager, False


def step_taker(
    step: PackStep, dropout: Dropout, members: Sequence[Member], batch_size: int
) -> EagerStep | CapturedStep:
    """Return the object that takes a pack's steps on the device of its rows."""
    eager = EagerStep(step, dropout)
    recorder = recorder_for(members[0].rows[0].record.hidden_TD.device)
    if recorder is None:
        return eager
    return CapturedStep(step, eager, dropout, Layouts(members, batch_size), recorder)


def recorder_for(device: torch.device) -> Recorder | None:
    """Return the recorder of steps on a device; None where steps cannot be captured."""
    if device.type == "cuda":
        return CudaGraphs(device)
    log.info("steps are not captured: there are no CUDA graphs on a %s", device.type)
    return None


def _by_name(found: StepFound) -> dict[str, Tensor]:
    losses = {f"nll of tokens {i}": nll for i, nll in enumerate(found.nll_RL)}
    return {"loss": found.loss_S, "norm of the gradient": found.norm_S, **losses}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
