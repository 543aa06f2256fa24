"""Live progress of a search: a panel in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from pmlray.law import LawSummary
from pmlray.study.law_search import Progress


def describe_law(law: LawSummary | None) -> str:
    """The fitted law in one line, its exponents with their 90 % intervals."""
    if law is None:
        return "no law yet"
    fitted = law.fit.law
    named = {"alpha": "rank_exponent", "beta": "len_exponent"}
    parts = []
    for symbol, name in named.items():
        low, high = law.intervals[name]
        parts.append(f"{symbol} {getattr(fitted, name):.3f} [{low:.3f}, {high:.3f}]")
    target = law.relative_interval
    known = f", targets known to +-{100 * target:.0f} %" if target is not None else ""
    return f"{fitted.form} law: C {fitted.coef:.3g}, {', '.join(parts)}{known}"


def describe(progress: Progress, spent_at_start: float, elapsed: float) -> str:
    """Where a search stands, in one line."""
    spent = progress.gpu_seconds_spent
    line = (
        f"{progress.phase}: {progress.n_done} done, {progress.n_pending} running,"
        f" {progress.n_failed} failed; {spent:.0f} gpu_seconds spent,"
        f" {progress.gpu_seconds_left:.0f} left in this phase"
    )
    rate = (spent - spent_at_start) / elapsed if elapsed else 0.0
    if rate > 0:
        minutes, seconds = divmod(int(progress.gpu_seconds_left / rate), 60)
        line += f", ETA at most {minutes}:{seconds:02d}"
    return line


@contextmanager
def live_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for LawSearch that shows each change as it happens."""
    console = Console(stderr=True)
    started = time.perf_counter()
    at_start: list[float] = []

    def text(progress: Progress) -> str:
        at_start.append(progress.gpu_seconds_spent)
        elapsed = time.perf_counter() - started
        line = describe(progress, at_start[0], elapsed)
        # A comparison fits no law.
        fits = progress.law is not None or progress.phase == "law"
        return f"{line}\n{describe_law(progress.law)}" if fits else line

    if not console.is_terminal:
        yield lambda progress: console.print(text(progress), highlight=False, soft_wrap=True)
        return
    with Live(Panel("starting Ray ..."), console=console, refresh_per_second=4) as live:
        yield lambda progress: live.update(Panel(text(progress), title="pmlray search"))
