"""The command line's work as Python objects, for notebooks and programs: `pmlray.Search`, `size`.

Frameworks are loaded by what needs them: validating, planning and reading a store load none.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pmlray.config import ClusterProfile, SearchSpec, load_spec
from pmlray.config.model_spec import DtypeChoice
from pmlray.config.prepared_search import PreparedSearch, prepare_search, prepare_spec
from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.errors import INSTALL_TRAIN, SpecError
from pmlray.study.search.plan import SearchPlan, plan_search
from pmlray.study.sizing.request import Wanted
from pmlray.types import Observation

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizePlan
    from pmlray.law import LawSummary
    from pmlray.study.search.progress import Progress

Announce = Callable[["Progress"], None]


@dataclass(frozen=True)
class Search:
    """One search and where it keeps its results; `Search.load` makes one.

    `store`: its folder, which need not be there yet. `tracking_uri`: MLflow's; by default
    MLFLOW_TRACKING_URI, the profile's, or a database in the store. `address`: a Ray cluster; by
    default RAY_ADDRESS, or Ray is started on this machine. The same search on the same store
    continues.

        search = Search.load("searches/smoke.yaml")
        search.plan().full_grid         # gpu_seconds, before anything is started
        search.run()                    # also a second time: it goes on where it was
        search.law().targets            # predictions with their 90 % intervals
    """

    prepared: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str | None = None
    address: str | None = None

    @classmethod
    def load(
        cls,
        source: str | Path | SearchSpec,
        *,
        overrides: Sequence[str] = (),
        store: str | Path | None = None,
        profile: ClusterProfile | str | Path | None = None,
        tracking_uri: str | None = None,
        address: str | None = None,
    ) -> Search:
        """A search from its YAML file, or from a spec made in Python; starts nothing.

        overrides: of a file's keys, as `["budget.gpu_seconds=600"]`. The files that a spec's task
        names are looked for in the working folder. SpecError, DataError or ModelError say what to
        mend.
        """
        from pmlray.api.search_run import default_store, settled_in

        if isinstance(source, SearchSpec):
            prepared = prepare_spec(source, Path())
        else:
            prepared = prepare_search(Path(source), overrides)
        settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
        folder = default_store(prepared, settings) if store is None else Path(store).absolute()
        found = settled_in(folder, prepared, settings)
        return cls(found, settings, folder, tracking_uri, address)

    @property
    def spec(self) -> SearchSpec:
        """What is searched."""
        return self.prepared.spec

    @property
    def search_id(self) -> str:
        """Its name, with a hash of all that differs from the defaults."""
        return self.spec.search_id

    def plan(self) -> SearchPlan:
        """Candidates, predicted cost and the first pack; DesignError when the budget is too small
        for that."""
        return plan_search(self.prepared, self.profile.gpus_per_pack > 0)

    def run(
        self, *, replay: str | Path | None = None, announce: Announce | None = None
    ) -> dict[str, Any]:
        """Run the search, or continue it, to its end: the result as `pmlray search --json` has it.

        replay: a table of measurements that answers in place of training (no Ray). announce: told
        every change, and every second while packs train, from a thread of its own; by default
        progress is shown on stderr. RunError where packs keep failing.
        """
        from pmlray.api.live_progress import live_progress
        from pmlray.api.search_run import SearchRun, run_search, tracking_uri_for

        uri = tracking_uri_for(self.store, self.profile, self.tracking_uri)
        table = None if replay is None else Path(replay)
        run = SearchRun(self.prepared, self.profile, self.store, uri, self.address, table)
        with _own_signals():
            if announce is not None:
                return run_search(run, announce)
            with live_progress() as shown:
                return run_search(run, shown)

    def observations(self) -> tuple[Observation, ...]:
        """Everything measured so far, in the order in which it was chosen; StoreError where
        nothing was started yet."""
        from pmlray.api.search_run import open_store

        return open_store(self.store)[1].observations()

    def law(self) -> LawSummary | None:
        """The law fitted to what is measured so far; None while that cannot carry one."""
        from pmlray.study.findings.result import fit_observations

        return fit_observations(self.spec, self.observations())

    def report(self) -> Path:
        """Write the report of what is measured so far; the path of its page."""
        from pmlray.api.search_run import report_store

        return Path(report_store(self.store)["report"])


def size(
    records: str | Path,
    model: str,
    *,
    recall: float = 0.99,
    confidence: float = 0.9,
    law: str | Path | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    max_rank: int | None = None,
    placement: Literal["mlp", "down_proj"] | None = None,
    layer: int | None = None,
    prompt_format: Literal["plain", "chat"] | None = None,
    revision: str | None = None,
    dtype: DtypeChoice = "auto",
    profile: ClusterProfile | str | Path | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Find the smallest rank that holds these records, train that adapter and check it.

    recall: share of the records to recall word for word; confidence: how sure the rank must be to
    reach it, one-sided. law: the store of an earlier records search. out: folder of the results,
    continued when given again. dry_run: only what would be done, and what it would cost, by a few
    steps where this machine trains. say: told each stage. The rest is as `pmlray size` has it, and
    so is the result, that of its `--json`. SpecError, DataError, ModelError or RunError say what to
    mend.
    """
    from pmlray.api.sizing.plan import SizeRequest, prepare_size

    settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
    plan = prepare_size(
        SizeRequest(
            *(Path(records), model, revision, dtype, Wanted(recall, confidence)),
            None if law is None else Path(law),
            None if out is None else Path(out),
            *(placement, layer, prompt_format, steps, max_rank, settings),
        )
    )
    if dry_run:
        from pmlray.api.sizing.forecast import forecast

        return plan.to_json(forecast(plan, address, say or _silent))
    return carry_out(plan, address, tracking_uri, say or _silent)


def carry_out(
    plan: SizePlan, address: str | None, tracking_uri: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Do what was planned, or go on with it; the result as `pmlray size --json` has it."""
    with train_extra():
        import pmlray.backends.ray.train
        import pmlray.engine.measure  # noqa: F401
    from pmlray.api.live_progress import live_progress
    from pmlray.api.sizing.run import run_size

    with _own_signals():
        return run_size(plan, address, tracking_uri, say, live_progress)


def read_profile(path: str | Path | None) -> ClusterProfile:
    """The profile of a file, or that of one machine without a GPU."""
    return ClusterProfile() if path is None else load_spec(ClusterProfile, Path(path))


@contextmanager
def train_extra() -> Generator[None]:
    """Imports that need the train extra say so when it is missing."""
    # One of them is torch.
    bound_waits(os.environ)
    try:
        yield
    except ImportError as error:
        raise SpecError(
            f"training and decoding need the train extra ({error}); run: {INSTALL_TRAIN}"
        ) from error


def _silent(_line: str) -> None:
    """Whoever asked for no lines gets none."""


@contextmanager
def _own_signals() -> Generator[None]:
    """A run's handlers of SIGINT and SIGTERM end with it; whose program it is in has its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
