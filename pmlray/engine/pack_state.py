"""All that a pack's later steps depend on, between two steps: taken out, and put back.

The one file that knows the insides of the loop and of what it watches. A pack that is put back goes
on bit for bit as the one that was taken out would have, on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pmlray.engine.batches import Row
from pmlray.engine.redistribute import Redistribution
from pmlray.engine.settle import Settling
from pmlray.memft import WindowState

if TYPE_CHECKING:
    from pmlray.engine.loop import _PackLoop

WINDOW = ("anchor", "patience", "expansion")


@dataclass(frozen=True, eq=False)
class PackState:
    """A pack after `step` optimiser steps: tensors by name, and the rest as JSON types."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def take_out(pack: _PackLoop, step: int) -> PackState:
    """The state of a pack after so many steps; waits for the device."""
    # What was worked for and not yet shared out would be shared out by someone else's time.
    pack.clock.lap(training=True)
    nll, index = pack._token_curves.flat()
    window = pack._weights.state
    tensors = {
        **{f"adapter.{name}": p.data for name, p in pack._model.lora.named_parameters()},
        **{f"optimizer.{name}": tensor for name, tensor in pack._optimizer.tensors().items()},
        **{f"window.{name}": getattr(window, name) for name in WINDOW},
        **{f"dropout.{i}": generator.get_state() for i, generator in enumerate(pack._dropout)},
        "step_losses": pack._step_losses[:step],
        "grad_norms": pack._grad_norms[:step],
        "token_curves": nll,
        "last_nll": pack._watched._last_nll,
    }
    facts = {
        "active": pack.active,
        "waiting": pack._trunks.waiting,
        "seconds": pack.clock.seconds,
        "training_seconds": pack.clock.training_seconds,
        "curves": pack._curves,
        "curve_at": [sorted(steps) for steps in pack._curve_at],
        "charged": pack._charged,
        "spared": pack._spared,
        "token_curves": index,
        "watched": {i: _facts_of(run) for i, run in pack._watched._runs.items()},
    }
    return PackState(step, {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                     facts)  # fmt: skip


@torch.no_grad()
def put_back(pack: _PackLoop, state: PackState) -> None:
    """Bring a fresh pack of the same members to a state."""
    device, facts = pack._step_losses.device, state.facts
    tensors = {
        # A generator's state stays on the host.
        name: tensor if name.startswith("dropout.") else tensor.to(device)
        for name, tensor in state.tensors.items()
    }
    for name, p in pack._model.lora.named_parameters():
        p.copy_(tensors[f"adapter.{name}"])
    prefix = "optimizer."
    pack._optimizer.load_tensors(
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    )
    pack._weights.state = WindowState(*(tensors[f"window.{name}"] for name in WINDOW))
    for i, generator in enumerate(pack._dropout):
        generator.set_state(tensors[f"dropout.{i}"])
    pack._step_losses[: state.step] = tensors["step_losses"]
    pack._grad_norms[: state.step] = tensors["grad_norms"]
    pack._token_curves.load_flat(tensors["token_curves"], facts["token_curves"])
    pack._watched._last_nll.copy_(tensors["last_nll"])
    pack.active = list(facts["active"])
    pack._trunks.go_on_with(facts["waiting"])
    # The clock shares its lists' meaning with the trunks, not the lists.
    pack.clock.seconds = list(facts["seconds"])
    pack.clock.training_seconds = facts["training_seconds"]
    pack._curves = [[(step, loss) for step, loss in curve] for curve in facts["curves"]]
    pack._curve_at = [frozenset(steps) for steps in facts["curve_at"]]
    pack._charged, pack._spared = list(facts["charged"]), list(facts["spared"])
    for i, of_run in facts["watched"].items():
        _load_facts(pack._watched._runs[int(i)], of_run)
    pack.clock.restart()


def _facts_of(run: Settling) -> dict[str, Any]:
    facts: dict[str, Any] = {"idle": run._idle, "done": run.done}
    if isinstance(run, Redistribution):
        facts |= {
            "last_look": run._last_look,
            "epoch": run._epoch,
            "progress": run.progress,
            "open": [(row.sample, row.scored) for row in run.open],
            "queue": [row.sample for row in run._queue],
        }
    return facts


def _load_facts(run: Settling, facts: Mapping[str, Any]) -> None:
    run._idle, run.done = facts["idle"], facts["done"]
    if isinstance(run, Redistribution):
        run._last_look, run._epoch = facts["last_look"], facts["epoch"]
        run.progress = facts["progress"]
        whole = {row.sample: row for row in run.rows}
        kept = {sample: _part(whole[sample], scored) for sample, scored in facts["open"]}
        run.open = tuple(kept.values())
        run._queue = [kept[sample] for sample in facts["queue"]]


def _part(row: Row, scored: list[int] | None) -> Row:
    if scored is None:
        return row
    return replace(row, record=row.record.shortened(scored[-1] + 1), scored=tuple(scored))
