"""Holders of a cluster's resources, from the tables of the Ray that this process is part of.

Ray's State API offers the same, but it needs a dashboard, which the Ray of one command does not
start, and it looks up the address by itself, which may be another cluster's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from textwrap import shorten

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import (
    # Generated at run time by protobuf, so a type checker does not find them.
    ActorTableData,  # pyrefly: ignore[missing-module-attribute]
    PlacementGroupTableData,  # pyrefly: ignore[missing-module-attribute]
)
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, remove_placement_group

POLL_SECONDS = 0.1
COMMAND_LETTERS = 80
# Ray's prefix of node types where no autoscaler runs, one type for each node.
FIXED_NODE = "node_"


@dataclass(frozen=True)
class Group:
    """Placement group that is not removed; ids in hex. bundles: the node ("" while it waits for
    one) and resources of each."""

    group_id: str
    job_id: str
    creator_id: str
    bundles: tuple[tuple[str, dict[str, float]], ...]
    waits: bool


def placement_groups() -> list[Group]:
    """Return all placement groups of the cluster that are not removed."""
    found = []
    for row in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(row)
        if group.state == PlacementGroupTableData.REMOVED:
            continue
        bundles = tuple((b.node_id.hex(), dict(b.unit_resources)) for b in group.bundles)
        waits = group.state != PlacementGroupTableData.CREATED
        found.append(
            Group(
                group.placement_group_id.hex(),
                group.creator_job_id.hex(),
                group.creator_actor_id.hex(),
                bundles,
                waits,
            )
        )
    return found


def held_groups(creator: str) -> set[str]:
    """Return the ids of the placement groups that this actor made."""
    return {group.group_id for group in placement_groups() if group.creator_id == creator}


def free_groups(creator: str, seconds: float, held: Collection[str] = ()) -> bool:
    """Remove the placement groups of this actor.

    Returns whether the nodes have the resources of those, and of the groups `held`, again within
    `seconds`. Ray itself keeps a dead actor's reservations for as long as the actor's job lives.
    """
    until, gone = time.monotonic() + seconds, set(held)
    while True:
        for group_id in held_groups(creator):
            _remove(group_id)
            gone.add(group_id)
        if not _held_by(gone):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)


def can_grow() -> bool:
    """Return whether an autoscaler adds nodes to the cluster."""
    told = _internal_kv_get("__autoscaling_status")
    report = json.loads(told).get("autoscaler_report") if told else None
    if report and any(not kind.startswith(FIXED_NODE) for kind in report["active_nodes"]):
        return True
    # Version 2 of Ray's autoscaler stores its configuration here.
    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return any(group.max_count != group.min_count for group in groups)


def describe_holders(wanted: Mapping[str, float], workers: int, creator: str) -> str:
    """Describe each node's amounts of the resources that a worker needs, the free amounts, and the
    holders of the rest; or that the actor `creator` has reserved them and its workers have not
    started."""
    kinds, groups = set(wanted), placement_groups()
    free = state.available_resources_per_node()
    total = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    several = f"{workers} workers with " if workers > 1 else ""
    each = " each" if workers > 1 else ""
    nodes = [
        f"{node['NodeManagerAddress']} has {_amounts(_only(kinds, node['Resources'], 0))}, of which"
        f" {_amounts(_only(kinds, free.get(node_id, {}), 0))} free"
        for node_id, node in total.items()
    ]
    if any(group.creator_id == creator and not group.waits for group in groups):
        return (
            f"Its {several}{_amounts(wanted)}{each} are reserved, and its processes are still"
            " starting: the machine is busy, or reads the packages from a slow disk."
        )
    held = _holders(kinds, groups, _actors())
    nobody = "Held by no actor and no placement group: by tasks, or there is too little of it."
    by = f"Held by: {'; '.join(held)}." if held else nobody
    return f"It wants {several}{_amounts(wanted)}{each}. {'; '.join(nodes)}. {by}"


def _actors() -> dict[str, ActorTableData]:
    """Return all live actors, by their ids in hex."""
    rows = state._connect_and_get_accessor().get_actor_table(None, "ALIVE")
    return {actor.actor_id.hex(): actor for actor in map(ActorTableData.FromString, rows)}


def _holders(
    kinds: set[str], groups: list[Group], actors: Mapping[str, ActorTableData]
) -> list[str]:
    jobs = {job["JobID"]: job for job in state.job_table()}
    found = []
    for group in groups:
        amounts = [_only(kinds, resources) for _, resources in group.bundles]
        if group.waits or not any(amounts):
            continue
        sums = {kind: sum(amount.get(kind, 0.0) for amount in amounts) for kind in kinds}
        maker = actors.get(group.creator_id)
        of = f" of {maker.class_name}" if maker is not None else ""
        found.append(
            f"placement group {group.group_id[:12]}{of} ({_amounts(sums)},"
            f" {_job(jobs, group.job_id)})"
        )
    for actor in actors.values():
        amount = _only(kinds, actor.required_resources)
        # An actor in a placement group holds nothing beyond the group's resources.
        if not amount or actor.placement_group_id:
            continue
        found.append(
            f"actor {actor.name or actor.class_name} (process {actor.pid} on"
            f" {actor.address.ip_address}, {_amounts(amount)}, {_job(jobs, actor.job_id.hex())})"
        )
    return found


def _job(jobs: Mapping[str, dict[str, object]], job_id: str) -> str:
    job = jobs.get(job_id)
    # An entrypoint may be a whole program, of several lines.
    command = " ".join(str(job["Entrypoint"]).split()) if job else ""
    what = f" `{shorten(command, COMMAND_LETTERS, placeholder=' ...')}`" if command else ""
    pid = f", process {job['DriverPid']} on {job['DriverIPAddress']}" if job else ""
    return f"Ray job {job_id}{what}{pid}"


def _only(
    kinds: set[str], resources: Mapping[str, float], missing: float | None = None
) -> dict[str, float]:
    """Return the amounts of these kinds; an absent kind is left out, or counts as `missing`."""
    there = {kind: resources.get(kind, missing) for kind in sorted(kinds)}
    return {kind: amount for kind, amount in there.items() if amount is not None}


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in sorted(resources.items()))


def _remove(group_id: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def _held_by(groups: Collection[str]) -> bool:
    """Return whether a node lists a resource of these placement groups, such as
    CPU_group_0_ID."""
    return bool(groups) and any(
        kind.rpartition("_")[2] in groups
        for resources in state.total_resources_per_node().values()
        for kind in resources
    )
