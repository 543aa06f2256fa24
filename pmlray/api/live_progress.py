"""Live progress of a study: a panel in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pmlray.api.status import (
    NO_LAW,
    SECONDS_BETWEEN_LINES,
    StudyStatus,
    clock,
    describe_known,
    status_of,
)
from pmlray.config.printable import printable
from pmlray.study.search.progress import Progress

BAR_WIDTH = 40


@dataclass
class Pace:
    """Rate of a study's spend and history of its precision, which take more than one status.

    clock: seconds, from any origin.
    """

    clock: Callable[[], float] = time.perf_counter
    _began: tuple[float, float] | None = None
    _known: list[float | None] = field(default_factory=list[float | None])

    def lines(self, now: StudyStatus) -> list[str]:
        """Return the lines that describe the progress."""
        # Time before anything is spent is start-up and not part of the rate.
        if self._began is None or now.spent <= self._began[1]:
            self._began = self.clock(), now.spent
        if not self._known or self._known[-1] != now.known:
            self._known.append(now.known)
        lines = [f"{self._counts(now)}{self._eta(now)}"]
        if now.law is not None:
            known = "" if now.law == NO_LAW else f"; {describe_known(self._known)}"
            lines.append(f"{now.law}{known}")
        lines += [f"  {line}" for line in (*now.live, *now.running)]
        # Reasons, stages and names are of the store.
        return [printable(line) for line in lines]

    def _counts(self, now: StudyStatus) -> str:
        estimate = "about " if now.n_all is not None and now.left > 0 else ""
        left = f", {estimate}{now.left:.0f} left in this phase" if math.isfinite(now.left) else ""
        whole = "" if now.n_all is None else f" of {now.n_all} runs"
        if now.needed < now.left:
            left += f", whose open runs take about {now.needed:.0f}"
        counts = f"{now.phase}: {now.n_done}{whole} done, {now.n_running} running"
        counts += f", {now.n_failed} failed"
        return f"{counts}; {now.spent:.0f} gpu_seconds spent{left}"

    def _eta(self, now: StudyStatus) -> str:
        """Return an upper bound of the remaining time, empty before a rate is known.

        It may end earlier: the law may be known well enough before the budget is spent, or the last
        point measured.
        """
        assert self._began is not None
        began, spent_then = self._began
        elapsed, spent = self.clock() - began, now.spent - spent_then
        if spent <= 0 or elapsed <= 0 or not math.isfinite(now.most_left):
            return ""
        return f", ETA at most {clock(now.most_left * elapsed / spent)}"


Show = Callable[[StudyStatus], None]


@contextmanager
def shown_live(
    title: str,
    waiting: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Show]:
    """Yield a callback that shows each new status: in place in a terminal, else as lines.

    waiting: text that a terminal shows before the first status. clock: seconds, from any origin; it
    limits how often lines are printed in which only counts or live figures are new.
    """
    console = Console(stderr=True) if console is None else console
    pace = Pace()
    if not console.is_terminal:
        shown: list[str] = []
        last: list[tuple[object, float]] = []

        def print_lines(now: StudyStatus) -> None:
            # Changes of counts, spend and live figures alone are printed at intervals, others at
            # once.
            news = replace(
                now, spent=0.0, left=0.0, needed=0.0, n_done=0, n_running=0, live=(), table=()
            )
            at = clock()
            if last and last[-1][0] == news and at - last[-1][1] < SECONDS_BETWEEN_LINES:
                return
            last[:] = [(news, at)]
            # Omit lines that have not changed, except the first, which holds the counts.
            rows = ("  ".join(f"{k} {v}" for k, v in row.items() if v) for row in now.table)
            lines = [*pace.lines(now), *(f"  {printable(row)}" for row in rows)]
            new = [lines[0], *(line for line in lines[1:] if line not in shown)]
            shown[:] = lines
            console.print("\n".join(new), highlight=False, markup=False, soft_wrap=True)

        yield print_lines
        return
    with Live(Panel(waiting, title=title), console=console, refresh_per_second=4) as live:
        yield lambda now: live.update(Panel(_picture(now, pace), title=title))


@contextmanager
def live_progress() -> Generator[Callable[[Progress], None]]:
    """Yield a callback that shows each change of a study's progress."""
    with shown_live("pmlray", "starting Ray ...") as show:
        yield lambda progress: show(status_of(progress))


def _picture(now: StudyStatus, pace: Pace) -> RenderableType:
    first, *rest = pace.lines(now)
    parts: list[RenderableType] = [Text(first)]
    if now.share_spent is not None:
        bar = ProgressBar(total=1.0, completed=now.share_spent, width=BAR_WIDTH)
        # The padding ends the line, which a ProgressBar alone does not.
        parts.append(Padding(bar, 0))
    parts += map(Text, rest)
    if now.table:
        table = Table(*now.table[0], box=None, pad_edge=False)
        for row in now.table:
            table.add_row(*(Text(printable(value)) for value in row.values()))
        parts.append(table)
    return Group(*parts)
