"""Status of a study in words for a terminal, read from any source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmlray.law import LawSummary
from pmlray.live_packs import LivePack
from pmlray.study.search.progress import Progress
from pmlray.types import PlannedRun

MOST_RUNS = 4
# Without a terminal, progress is printed at least this often while only counts change.
SECONDS_BETWEEN_LINES = 12.0
NO_LAW, NOT_KNOWN = "no law yet", "targets not known yet"


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """Status of a study at one moment; counts are of runs, amounts in gpu_seconds.

    `law` is the fitted law in one line, `known` the largest half-width of the 90 % interval at a
    target as a share of the prediction, None while it is unknown. `running`: lines for the runs in
    training, grouped by the reason why they were chosen. `left` is the rest of the phase's budget;
    `needed` is what its runs without a result would take. `live`: one line of progress per pack in
    training; `stage`: the study's current activity, in words without numbers. `n_all`, and `table`
    with its rows measured so far, belong to comparisons.
    """

    phase: str
    n_done: int
    n_running: int
    n_failed: int
    spent: float
    left: float
    law: str | None
    known: float | None
    running: tuple[str, ...] = ()
    needed: float = math.inf
    n_all: int | None = None
    live: tuple[str, ...] = ()
    stage: str = ""
    table: tuple[Mapping[str, str], ...] = ()

    @property
    def most_left(self) -> float:
        """Upper bound of what this phase still takes: it ends with its budget or its runs."""
        return min(self.left, self.needed)

    @property
    def share_spent(self) -> float | None:
        """Share spent of the most that this phase takes; None where that is zero."""
        whole = self.spent + self.most_left
        return None if whole <= 0 else self.spent / whole


def status_of(progress: Progress) -> StudyStatus:
    """Return the status of a running study from its progress."""
    law = progress.law
    # Neither a comparison nor a study named by `what` fits a law.
    fits = law is not None or (progress.phase == "law" and not progress.what)
    return StudyStatus(
        phase=progress.what or (progress.phase if progress.n_all is None else "comparison"),
        n_done=progress.n_done,
        n_running=progress.n_pending,
        n_failed=progress.n_failed,
        spent=progress.gpu_seconds_spent,
        left=progress.gpu_seconds_left,
        law=describe_law(law) if fits else None,
        known=None if law is None else law.known_interval,
        running=describe_runs(progress.running),
        needed=progress.gpu_seconds_open,
        n_all=progress.n_all,
        live=describe_live(progress),
        stage=", ".join([progress.stage, *(pack.stage for pack in progress.packs)]).strip(", "),
    )


def describe_live(progress: Progress) -> tuple[str, ...]:
    """Describe each pack in training, one line per pack.

    Without any, return the current activity and its duration.
    """
    if progress.packs:
        return tuple(map(_of_pack, progress.packs))
    return (f"{progress.stage} ({progress.stage_seconds:.0f} s)",) if progress.stage else ()


def _of_pack(pack: LivePack) -> str:
    if not pack.train_steps:
        return f"{pack.pack_id}: {pack.stage}"
    share = 100 * pack.steps / pack.train_steps
    parts = [f"{pack.steps:.0f} of {pack.train_steps:.0f} adapter-steps ({share:.0f} %)"]
    parts.append(f"{pack.n_ended} of {pack.n_runs} runs ended")
    if (loss := pack.mean_loss) is not None:
        parts.append(f"mean loss {loss:.3g}")
    spent = f"{pack.gpu_seconds:.0f} gpu_seconds spent"
    if pack.gpu_seconds_left is not None:
        spent += f", about {pack.gpu_seconds_left:.0f} left"
    parts.append(spent)
    if pack.seconds_left is not None:
        parts.append(f"ETA {clock(pack.seconds_left)}")
    return f"{pack.pack_id}: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """Format a duration as H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_law(law: LawSummary | None) -> str:
    """Describe the fitted law in one line, its exponents with their 90 % intervals."""
    if law is None:
        return NO_LAW
    fitted = law.fit.law
    parts = [f"C {fitted.coef:.3g}"]
    for symbol, name in {"alpha": "rank_exponent", "beta": "len_exponent"}.items():
        low, high = law.intervals[name]
        value = f"{symbol} {getattr(fitted, name):.3f}"
        parts.append(value if not law.judgement.enough else f"{value} [{low:.3f}, {high:.3f}]")
    return f"{fitted.form} law: {', '.join(parts)}"


def describe_runs(runs: Sequence[PlannedRun]) -> tuple[str, ...]:
    """Describe the runs in training, one line for those chosen for the same reason."""
    reasons: dict[str, list[PlannedRun]] = {}
    for run in runs:
        reasons.setdefault(run.why, []).append(run)
    lines = [_of_reason(why, alike) for why, alike in reasons.items()]
    if len(lines) > MOST_RUNS:
        n_more = sum(len(alike) for alike in list(reasons.values())[MOST_RUNS - 1 :])
        lines = [*lines[: MOST_RUNS - 1], f"and {n_more} more"]
    return tuple(lines)


def _of_reason(why: str, runs: Sequence[PlannedRun]) -> str:
    first = runs[0]
    point = first.point
    names = list(dict.fromkeys(r.point.placement for r in runs if r.point.placement is not None))
    where = f" at {', '.join(names)}" if names else ""
    named = (
        f"rank {point.lora_rank} x {point.seq_len} tokens, {point.train_steps} steps{where}"
        if len(runs) == 1
        else f"{len(runs)} runs of rank {_span([r.point.lora_rank for r in runs])}"
        f" x {_span([r.point.seq_len for r in runs])} tokens{where}"
    )
    return f"{named}: {why}" if why else named


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def describe_known(history: Sequence[float | None]) -> str:
    """Describe the precision at the targets, now and before; the newest value is the last."""
    known = history[-1] if history else None
    if known is None:
        return NOT_KNOWN
    earlier = [share for share in history[:-1] if share is not None and share != known]
    was = f", +-{100 * earlier[-1]:.2g} % before" if earlier else ""
    return f"targets known to +-{100 * known:.2g} %{was}"
