"""Steps of a pack captured once as a CUDA graph and replayed, where their shapes stay the same.

On a GPU a step over few tokens takes less time than Python needs to launch its many kernels; a
graph is launched as one. The captured part is `PackStep`: forward, token weights with the window's
state, backward, update. Not captured are the choice of rows, which are then written into a
`FixedBatch`, dropout's draws from each adapter's own generator, learning rates, and metrics.

**Never run on a GPU so far.** The tests record and replay steps on a CPU, kernel by kernel, at
fixed addresses like a graph (`tests/integration/engine/recording.py`). That shows that a step
depends on no constant of its capture and never waits for the device, not that CUDA captures it. So
replays are checked: the first, second, fourth, eighth, ... is also taken kernel by kernel, and
compared. Where capture fails or a replay differs, the pack continues without graphs, from the
result of the step taken kernel by kernel, and logs one warning.
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

# Steps taken with a layout before it is captured: they trigger lazy initialisation, and rule out
# layouts that change all the time.
STEPS_BEFORE_CAPTURE = 3
# A step over more positions takes longer than its launches (estimated for Qwen3-8B: a few hundred
# suffice), and a graph's memory is held in addition to that of all other work.
MOST_POSITIONS = 4096
# Limit on positions with padding to fixed places, over positions without.
MOST_PADDING = 1.25


class Recorder(Protocol):
    """Capture of a step's work on the device."""

    def run(self, step: Callable[[], StepFound]) -> StepFound:
        """Take the step kernel by kernel, in the stream that captures."""
        ...

    def record(self, step: Callable[[], StepFound]) -> tuple[StepFound, Callable[[], None]]:
        """Capture a step; return its outputs and a function that replays it.

        RuntimeError where the capture fails.
        """
        ...


class CudaGraphs:
    """Recorder that uses torch.cuda.CUDAGraph, on a stream of its own."""

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
        # The outer context restores the stream: `graph` does not where its capture fails.
        with (
            torch.cuda.stream(self._stream),
            # Other threads, such as NCCL's watchdog, may query the device during capture.
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
    """A step over the rows of one layout; a call takes it on the inputs loaded last."""

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
        """Write the next step's inputs to the memory that the graph reads."""
        self._batch.load(rows)
        self._rate_S.copy_(rate_S)

    def __call__(self) -> StepFound:
        return self._step(self.batches, lambda _batch: self._batch.keep_TW, self._rate_S)


class CapturedStep:
    """Alternative to `EagerStep` that replays a graph from a layout's fourth step on.

    There is one graph at a time; when rows leave or enter, the layout changes and a new graph is
    captured.
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
            # Free the last layout's memory before the next one's is allocated.
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
        """Take a step kernel by kernel and as a replay; use the replay if both agree."""
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
    if recorder is None or not step.can_be_captured:
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
