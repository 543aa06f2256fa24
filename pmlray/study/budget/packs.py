"""Packs made of a study's runs, by the speed and memory that earlier packs have shown.

The planner itself is `pmlray.design.packing`; here observations and pack times become its terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pmlray.config.adapters.adapter_memory import PARAM_BYTES
from pmlray.design import CostModel
from pmlray.design.packing import (
    Device,
    Load,
    PackUse,
    deal_out,
    learn_device,
)
from pmlray.types import Family, Observation, PackTimes, PlannedRun, Room

# Runs without room wait inside a pack, up to so many times what its device holds at once: the
# device is then under-used at the end of a pack only, and the runs that one pack can lose, or keep
# from the law, stay bounded.
ROOMFULS = 4.0

Draft = tuple[tuple[PlannedRun, ...], Room | None]
TrunkFamily = tuple[Family, int, int, str, float | None]


def known_device(
    observations: Iterable[Observation], times: Iterable[PackTimes], cost: CostModel
) -> Device | None:
    """Return the device's speed and memory by the packs so far; None before one has ended."""
    of_round: dict[int, list[Observation]] = {}
    for o in observations:
        of_round.setdefault(o.round, []).append(o)
    return learn_device(
        [pack_use(of_round[t.round], t, cost) for t in times if t.round in of_round],
    )


def packs_of(
    groups: Sequence[Sequence[PlannedRun]],
    n_devices: int,
    device: Device | None,
    cost: CostModel,
    most_runs: int | None = None,
    out: Sequence[Sequence[PlannedRun]] = (),
) -> tuple[Draft, ...]:
    """Deal groups of runs that stay together to packs, one a device or more, each with its room;
    groups that devices with packs `out` would end sooner are kept for them."""

    def holds(load: Load) -> bool:
        few = most_runs is None or load.runs <= most_runs
        return few and (device is None or ROOMFULS * _share_held(device, load) >= 1)

    busy = [load_of(runs, cost).seconds for runs in out]
    dealt = deal_out([load_of(group, cost) for group in groups], n_devices, holds, busy)
    packs = [tuple(run for i in pack for run in groups[i]) for pack in dealt]
    return tuple((runs, room_for(runs, device, cost)) for runs in packs)


def room_for(runs: Sequence[PlannedRun], device: Device | None, cost: CostModel) -> Room | None:
    """Return the limit of a step of a pack of these runs; None where all fit together."""
    load = load_of(runs, cost)
    share = 1.0 if device is None else _share_held(device, load)
    if share >= 1:
        return None
    return Room(max(1, int(share * load.rows)), max(1, int(share * load.positions)))


def trunk_families(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Group runs that differ in nothing but train_steps, and so may share steps."""
    families: dict[TrunkFamily, list[PlannedRun]] = {}
    for run in runs:
        families.setdefault(_family(run), []).append(run)
    return list(families.values())


def of_one_kind(runs: Sequence[PlannedRun], cost: CostModel) -> tuple[tuple[PlannedRun, ...], ...]:
    """Split runs into those that can be in one pack, by their placements; see `PlaceWork`."""
    kinds: dict[int, list[PlannedRun]] = {}
    for run in runs:
        kinds.setdefault(cost.pack_kind(run.point), []).append(run)
    return tuple(map(tuple, kinds.values()))


def load_of(group: Sequence[PlannedRun], cost: CostModel) -> Load:
    """Return the load of a group on a device while all of its runs train."""
    return Load(
        len(group),
        sum(cost.rows_per_step(run.point) for run in group),
        round(sum(cost.tokens_per_step(run.point) for run in group)),
        sum(cost.predict(run.point) for run in group),
        max(run.point.lora_rank for run in group),
        cost.pack_kind(group[0].point),
    )


def _share_held(device: Device, load: Load) -> float:
    return device.share_held(load.rows, load.positions, load.columns)


def pack_use(pack: Sequence[Observation], times: PackTimes, cost: CostModel) -> PackUse:
    """Return the time and memory that a pack took, by its observations and times."""
    # Of runs that share a trunk at least one trains at a time, so the estimate is never too high.
    at_once = {_family(o): o.point for o in pack}.values()
    room = next((Room(**o.provenance["room"]) for o in pack if o.provenance.get("room")), None)
    rows = sum(cost.rows_per_step(point) for point in at_once)
    positions = round(sum(cost.tokens_per_step(point) for point in at_once))
    told = pack[0].provenance
    return PackUse(
        rows=rows if room is None else min(rows, room.rows),
        positions=positions if room is None else min(positions, room.positions),
        steps=max(o.provenance.get("pack_steps", o.curve[-1][0]) for o in pack),
        position_steps=sum(o.charged_steps * cost.tokens_per_step(o.point) for o in pack),
        training_seconds=times.training_seconds,
        wall_seconds=times.wall_seconds,
        memory_bytes=max(o.peak_memory_bytes for o in pack),
        device_memory_bytes=min(o.provenance.get("device_memory_bytes", 0) for o in pack),
        columns=told.get("adapter_slots", 0) * told.get("largest_rank", 0),
        column_bytes=PARAM_BYTES
        * max(o.provenance.get("adapter_params_per_rank", 0) for o in pack),
    )


def _family(run: PlannedRun | Observation) -> TrunkFamily:
    return run.point.family, run.sequence_id, run.seed, run.method, run.learning_rate
