"""Cells of the benchmark: all ways on one work take turns, and what each of them took."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from scripts.bench.common.statistics import growth_exponent, paired_ratio, spread
from scripts.bench.speed.flops import StepShape, matmul_flops, mean_flops
from scripts.bench.speed.pace import Child
from scripts.bench.speed.work import Work, batch_at, records_of, tokenizer_of

RIVALS = ("authors", "peft_trainer", "peft_deepspeed", "trl_sft")
ARITHMETIC = {"pmlray": "packed", "pmlray_bare": "packed", "authors": "authors"}
# The steps whose shapes stand for all.
SHAPED_STEPS = 50
MAX_WARM_UP = 512


@dataclass(frozen=True)
class Plan:
    """How cells are measured: rounds of turns, least seconds of a turn, and whether the processes
    of all ways stay alive between turns (where the memory holds them) or start anew each round."""

    repeats: int
    block_seconds: float
    resident: bool


@dataclass
class _Turns:
    """What one way did in its rounds."""

    way: str
    work: Work
    blocks: list[dict[str, Any]]
    starts: list[float]
    peak_memory: int = 0
    step_memory: int = 0
    not_installed: str | None = None


def measure_group(
    work: Work, packs: Sequence[int], plan: Plan, rivals: Sequence[str] = RIVALS
) -> list[dict[str, Any]]:
    """Every way on one work: pmlray in packs of each size, the rivals with their one adapter."""
    middle = packs[len(packs) // 2]
    lanes = [("pmlray", replace(work, n_adapters=n)) for n in packs]
    lanes.append(("pmlray_bare", replace(work, n_adapters=middle)))
    turns = [_Turns(way, own, [], []) for way, own in (*lanes, *((r, work) for r in rivals))]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks: list[float] = []
    rounds = _resident_rounds(turns, plan) if plan.resident else _fresh_rounds(turns, plan)
    for _ in rounds:
        peaks += matmul_flops(device, getattr(torch, work.dtype), 1)
    shapes = _shapes(work)
    return [_cell(turn, shapes, peaks) for turn in turns]


def _resident_rounds(turns: Sequence[_Turns], plan: Plan) -> Iterator[None]:
    children: list[tuple[_Turns, Child, int]] = []
    try:
        for turn in turns:
            child = _started(turn)
            if child is not None:
                children.append((turn, child, 0))
        children = [(turn, child, _warmed_up(child, plan)) for turn, child, _ in children]
        for _ in range(plan.repeats):
            for turn, child, steps in children:
                turn.blocks.append(child.block(steps))
            yield
        for turn, child, _ in children:
            _ended(turn, child)
    finally:
        for _, child, _ in children:
            child.close()


def _fresh_rounds(turns: Sequence[_Turns], plan: Plan) -> Iterator[None]:
    for _ in range(plan.repeats):
        for turn in turns:
            child = None if turn.not_installed else _started(turn)
            if child is not None:
                try:
                    turn.blocks.append(child.block(_warmed_up(child, plan)))
                    _ended(turn, child)
                finally:
                    child.close()
        yield


def _started(turn: _Turns) -> Child | None:
    child = Child(turn.way, turn.work)
    turn.not_installed = child.not_installed
    if child.not_installed is not None:
        child.close()
        return None
    turn.starts.append(child.start_seconds)
    return child


def _ended(turn: _Turns, child: Child) -> None:
    last = child.end()
    turn.peak_memory = max(turn.peak_memory, last["peak_memory_bytes"])
    turn.step_memory = max(turn.step_memory, last["step_memory_bytes"])


def _warmed_up(child: Child, plan: Plan) -> int:
    """Let a child warm up; the steps of its turns.

    pmlray looks at all records after 1, 2, 4, ... steps where a step does not see them all: all
    turns then fit between two looks.
    """
    if child.work.task == "long_context":
        seconds = child.block(2)["seconds"] / 2
        return math.ceil(plan.block_seconds / seconds)
    warm = 8
    while True:
        steps = warm + 1 - child.taken
        seconds = child.block(steps)["seconds"] / steps
        most = (warm - 1) // plan.repeats
        if most and (most * seconds >= plan.block_seconds or warm == MAX_WARM_UP):
            return min(most, math.ceil(plan.block_seconds / seconds))
        warm *= 2


def _shapes(work: Work) -> list[StepShape]:
    records = records_of(work, tokenizer_of(work))
    shapes = []
    for step in range(SHAPED_STEPS):
        rows = [records[i] for i in batch_at(work, len(records), step)]
        scored = tuple(len(row.target_ids) for row in rows)
        # The last target token predicts nothing.
        lengths = tuple(len(row.prompt_ids) + len(row.target_ids) - 1 for row in rows)
        shapes.append(StepShape(lengths, scored))
    return shapes


def _cell(turn: _Turns, shapes: Sequence[StepShape], peaks: Sequence[float]) -> dict[str, Any]:
    work = turn.work
    cell: dict[str, Any] = {"way": turn.way, **asdict(work)}
    if turn.not_installed:
        return cell | {"status": "not installed", "reason": turn.not_installed}
    kind = ARITHMETIC.get(turn.way, "full")
    # A rival's rows are padded, and go through the model with their last token.
    own = shapes if kind == "packed" else [
        StepShape(tuple(n + 1 for n in shape.lengths), shape.scored).padded() for shape in shapes
    ]  # fmt: skip
    # Counted for one layer's down_proj alone.
    flops = (
        mean_flops(kind, work.geometry, work.layer, work.lora_rank, own)
        if work.place == "down_proj"
        else None
    )
    tokens = sum(sum(shape.scored) for shape in shapes) / len(shapes)
    rates = [work.n_adapters * b["steps"] / b["seconds"] for b in turn.blocks]
    joules = [b["joules"] for b in turn.blocks]
    known = None not in joules
    per_step = [j / (work.n_adapters * b["steps"]) for j, b in zip(joules, turn.blocks, strict=True)
                if known]  # fmt: skip
    return cell | {
        "status": "measured",
        "start_seconds": spread(turn.starts),
        "adapter_steps_per_second": spread(rates),
        "supervised_tokens_per_second": spread([tokens * rate for rate in rates]),
        "flops_per_adapter_step": flops,
        "flops_per_second": spread([flops * rate for rate in rates]) if flops else None,
        "share_of_matmul_peak": (
            paired_ratio([flops * rate for rate in rates], peaks) if flops else None
        ),
        "matmul_peak": spread(peaks),
        "peak_memory_bytes": turn.peak_memory,
        "step_memory_bytes": turn.step_memory,
        "joules_per_adapter_step": spread(per_step) if per_step else None,
        "captured": sum(b["replayed"] for b in turn.blocks) / sum(b["steps"] for b in turn.blocks),
        "rounds": rates,
    }


def ratios(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """pmlray over every other way on the same work, round by round; memory over memory."""
    found = []
    measured = [cell for cell in cells if cell["status"] == "measured"]
    for ours in (cell for cell in measured if cell["way"] == "pmlray"):
        for other in measured:
            same_pack = other["n_adapters"] == ours["n_adapters"]
            comparable = other["way"] in RIVALS or (other["way"] == "pmlray_bare" and same_pack)
            if comparable and _place(other) == _place(ours):
                found.append(
                    {
                        "over": other["way"],
                        **_place(ours),
                        "n_adapters": ours["n_adapters"],
                        "adapter_steps_per_second": paired_ratio(ours["rounds"], other["rounds"]),
                        "peak_memory": ours["peak_memory_bytes"] / other["peak_memory_bytes"],
                        "step_memory": ours["step_memory_bytes"] / other["step_memory_bytes"],
                    }
                )
    return found


def _place(cell: dict[str, Any]) -> dict[str, Any]:
    return {name: cell[name] for name in ("model", "task", "place", "seq_len", "lora_rank")}


def growth(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of cost: seconds of a step against rank, length (long contexts) and adapters."""
    found = []
    axes = ("lora_rank", "seq_len", "n_adapters")
    measured = [cell for cell in cells if cell["status"] == "measured"]
    for axis in axes:
        families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for cell in measured:
            if axis != "seq_len" or cell["task"] == "long_context":
                fixed = tuple(cell[n] for n in ("way", "model", "task", *axes) if n != axis)
                families.setdefault(fixed, []).append(cell)
        for fixed, family in families.items():
            seconds = [
                cell["n_adapters"] / cell["adapter_steps_per_second"]["median"] for cell in family
            ]
            exponent = growth_exponent([cell[axis] for cell in family], seconds)
            if exponent is not None:
                names = [n for n in ("way", "model", "task", *axes) if n != axis]
                place = dict(zip(names, fixed, strict=True))
                found.append({"along": axis, **place, "exponent": exponent})
    return found
