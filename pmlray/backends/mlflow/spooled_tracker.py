"""Asynchronous tracker: entries go to the store's journal, and from there to the mirror.

While the mirror is unreachable they stay in the journal; each is sent in order, once. An entry
whose sending was interrupted is sent again: mirrors ignore what they already have.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.node_load import NodeLoad, loads_of
from pmlray.backends.store.file_store import FileStore
from pmlray.errors import StoreError, TrackerAway
from pmlray.live_packs import LivePack
from pmlray.rebuild import NAME
from pmlray.study.run_names import run_name, run_tags
from pmlray.types import Observation, PlannedRun

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
# Longest wait of an ending search for a mirror that is slow or unreachable.
FLUSH_SECONDS = 10.0


def local_tracking_uri(store: Path) -> str:
    """Return the URI of the default mirror: an SQLite file in the search's own folder."""
    return f"sqlite:///{store / 'mlflow.db'}"


class Mirror(Protocol):
    """Receiver of journal entries; every method raises TrackerAway when it cannot be reached.

    `identity`: differs for an emptied mirror at the same address, which is sent everything again.
    """

    @property
    def identity(self) -> str:
        """Identity of the mirror's content; see above."""
        ...

    @property
    def page(self) -> str:
        """Address of the page that shows the study."""
        ...

    @property
    def run_keys(self) -> frozenset[str]:
        """Keys of the observations that the mirror has."""
        ...

    def start(self) -> None:
        """Mark the search as running (again)."""
        ...

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations; one that is already there is left alone."""
        ...

    def load(self, loads: Iterable[NodeLoad]) -> None:
        """Record the load of nodes; what is already there is left alone."""
        ...

    def law(self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int) -> None:
        """Record the law at this spend."""
        ...

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int) -> None:
        """Record the progress of the search at this spend."""
        ...

    def live(self, runs: Sequence[Mapping[str, Any]], time_ms: int) -> None:
        """Record the loss of runs in training."""
        ...

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files and close the search."""
        ...


class Replay:
    """Sender of a store's journal to a mirror.

    connect: connects to the mirror; TrackerAway when it cannot.
    """

    def __init__(
        self, store: FileStore, journal: MirrorJournal, uri: str, connect: Callable[[], Mirror]
    ) -> None:
        self._store, self._journal, self._uri, self._connect = store, journal, uri, connect
        self._mirror: Mirror | None = None
        self._page: str | None = None

    @property
    def page(self) -> str | None:
        """Address of the page that shows the study; None before the mirror was reached."""
        return self._page

    def send(self) -> int:
        """Send the waiting entries and return their number; TrackerAway at the first failure."""
        n, mirror = 0, self._connected()
        identity = mirror.identity
        for number, entry in self._journal.entries(self._journal.sent(self._uri, identity)):
            try:
                self._apply(mirror, entry)
            except TrackerAway:
                self._mirror = None
                raise
            self._journal.mark_sent(self._uri, identity, number)
            n += 1
        return n

    def complete(self) -> int:
        """Send the observations that the mirror lacks, whatever was sent before, and return the
        number that it has then."""
        mirror = self._connected()
        there = mirror.run_keys
        mirror.observe(o for o in self._store.observations() if o.run_key not in there)
        return len(mirror.run_keys)

    def _connected(self) -> Mirror:
        if self._mirror is None:
            self._mirror = self._connect()
            self._page = self._mirror.page
        return self._mirror

    def _apply(self, mirror: Mirror, entry: Mapping[str, Any]) -> None:
        match entry["kind"]:
            case "start":
                mirror.start()
            case "observe":
                found = [self._store.observation(key) for key in entry["run_keys"]]
                there = [o for o in found if o is not None]
                mirror.observe(there)
                mirror.load(loads_of(self._store.folder, (o.round for o in there)))
            case "law":
                mirror.law(entry["metrics"], entry["gpu_seconds"], entry["time_ms"])
            case "live":
                # A run measured by now is mirrored with its whole curve.
                rows = [row for row in entry["runs"] if not self._is_measured(row["run_key"])]
                mirror.live(rows, entry["time_ms"])
            case "progress":
                mirror.progress(entry["metrics"], entry["gpu_seconds"], entry["time_ms"])
            case "finish":
                files = (self._store.folder / name for name in entry["artifacts"])
                mirror.finish([file for file in files if self._is_ours(file)], entry["status"])

    def _is_measured(self, run_key: str) -> bool:
        return NAME.fullmatch(run_key) is not None and self._store.has_observation(run_key)

    def _is_ours(self, file: Path) -> bool:
        """Return whether a file lies in the store: no other file of this machine may be sent."""
        try:
            return file.is_file() and file.resolve().is_relative_to(self._store.folder.resolve())
        except OSError:  # The name is too long.
            return False


class SpooledTracker:
    """Tracker whose calls return at once, even where its mirror is slow or unreachable.

    experiment: name of the experiment that a new mirror of the study is made in.
    """

    def __init__(
        self,
        store: FileStore,
        journal: MirrorJournal,
        uri: str,
        experiment: str,
        connect: Callable[[], Mirror],
    ) -> None:
        self._store, self._journal, self._uri = store, journal, uri
        self._replay = Replay(store, journal, uri, connect)
        self._known = journal.run_keys()
        journal.add("start", experiment=experiment)
        self._news, self._over, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """Address of the mirror."""
        return self._uri

    @property
    def page(self) -> str | None:
        """Address of the page that shows the study; None before the mirror was reached."""
        return self._replay.page

    def observe(self, observations: Iterable[Observation]) -> None:
        """See Tracker."""
        new = [o.run_key for o in observations if o.run_key not in self._known]
        if new:
            self._known |= set(new)
            self._add("observe", run_keys=new)

    def law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """See Tracker."""
        self._add("law", metrics=dict(metrics), gpu_seconds=gpu_seconds)

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """See Tracker."""
        self._add("progress", metrics=dict(metrics), gpu_seconds=gpu_seconds)

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """See Tracker; waits for the mirror, but for FLUSH_SECONDS at most."""
        names = [str(path.relative_to(self._store.folder)) for path in artifacts]
        self._add("finish", artifacts=names, status=status)
        self._over.set()
        self._thread.join(FLUSH_SECONDS)
        if waiting := self._journal.waiting(self._uri):
            log.warning(
                "%d entries wait for MLflow; they are sent when the search goes on, or by: pmlray"
                " sync %s",
                waiting,
                self._store.folder,
            )

    def live(self, runs: Mapping[str, PlannedRun], packs: Iterable[LivePack]) -> None:
        """Record the progress of runs in training; those not in `runs`, by run_key, are left
        out."""
        rows = [
            {
                "name": run_name(run),
                "tags": run_tags(run),
                "run_key": live.run_key,
                "steps": live.steps,
                "loss": live.loss,
            }
            for pack in packs
            for live in pack.runs
            if (run := runs.get(live.run_key)) is not None and math.isfinite(live.loss)
        ]
        if rows:
            self._add("live", runs=rows)

    def _add(self, kind: str, **content: Any) -> None:
        # A study and its follower write from different threads.
        with self._lock:
            self._journal.add(kind, **content)
        self._news.set()

    def _send_all(self) -> None:
        away = told = False
        while True:
            over = self._over.is_set()
            self._news.clear()
            try:
                self._replay.send()
                away = False
                # A database has pages only once somebody serves it.
                if not told and self._uri.startswith("http"):
                    log.info("the runs are shown at %s", self.page)
                    told = True
            except TrackerAway as error:
                if not away:
                    log.warning("%s; its entries wait in %s", error, self._store.folder / "mirror")
                away = True
            except (OSError, StoreError) as error:
                # The store's own disk is full or unreachable, or a file of it is damaged.
                log.warning("the journal of %s is not sent: %s", self._store.folder, error)
                away = True
            if over:
                return
            # While the mirror is unreachable, new entries are no reason to try again sooner.
            (self._over if away else self._news).wait(RETRY_SECONDS)
