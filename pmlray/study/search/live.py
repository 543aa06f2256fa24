"""Live progress of a study, with the reports of its packs in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pmlray.live_packs import LivePack
from pmlray.study.search.progress import Progress


def with_live(progress: Progress, packs: Sequence[LivePack], *, by_pack: bool = True) -> Progress:
    """Add the live reports of packs in training to a study's progress.

    Runs count as done when they end, before their pack does, and gpu_seconds as they are spent.
    Where no budget ends the study, what is left is an estimate, and at least what the packs say.
    by_pack: whether the progress itself counts runs only once their whole pack is back.
    """
    if not packs:
        return progress
    ended, spent = 0, sum(pack.open_gpu_seconds for pack in packs)
    if by_pack:
        # A continued pack reports all its runs, some of which are counted already.
        known: list[Mapping[str, float]] = [progress.ended_before.get(p.pack_id, {}) for p in packs]
        pairs = list(zip(packs, known, strict=True))
        ended = sum(max(0, pack.n_ended - len(runs)) for pack, runs in pairs)
        spent = sum(max(0.0, pack.gpu_seconds - sum(runs.values())) for pack, runs in pairs)
    now = replace(
        progress,
        n_done=progress.n_done + ended,
        n_pending=max(0, progress.n_pending - ended),
        gpu_seconds_spent=progress.gpu_seconds_spent + spent,
        gpu_seconds_left=max(0.0, progress.gpu_seconds_left - spent),
        gpu_seconds_open=max(0.0, progress.gpu_seconds_open - spent),
        packs=tuple(packs),
    )
    if now.n_all is None:
        return now
    if (left := _left_by_packs(now, now.n_all)) is None:
        return now

    def at_least(told: float) -> float:
        return max(told, left) if math.isfinite(told) else left

    return replace(
        now,
        gpu_seconds_left=at_least(now.gpu_seconds_left),
        gpu_seconds_open=at_least(now.gpu_seconds_open),
    )


def _left_by_packs(now: Progress, n_all: int) -> float | None:
    """Return the gpu_seconds that the packs in training take to their end by their own estimate,
    and the runs that no pack has begun at the same cost a run; None where no pack has one."""
    paced = [(p, p.gpu_seconds_left) for p in now.packs if p.gpu_seconds_left is not None]
    if not paced:
        return None
    left = sum(rest for _, rest in paced)
    a_run = (sum(p.gpu_seconds for p, _ in paced) + left) / sum(p.n_runs for p, _ in paced)
    return left + a_run * max(0, n_all - now.n_done - now.n_failed - now.n_pending)


def live_metrics(packs: Sequence[LivePack]) -> dict[str, float]:
    """Return the live progress of all packs in training together, as flat metrics."""
    steps, wanted = sum(p.steps for p in packs), sum(p.train_steps for p in packs)
    metrics = {"live/steps": steps, "live/train_steps": wanted}
    metrics["live/gpu_seconds"] = sum(pack.gpu_seconds for pack in packs)
    losses = [loss for pack in packs if (loss := pack.mean_loss) is not None]
    if losses:
        metrics["live/mean_loss"] = sum(losses) / len(losses)
    left = [pack.seconds_left for pack in packs if pack.seconds_left is not None]
    if left:
        metrics["live/seconds_left"] = max(left)
    return metrics
