"""`pmlray.Search`: a search in Python. Validating, planning and reading import no framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.environment.process import own_signals
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.load import read_profile
from pmlray.config.prepared_search import PreparedSearch, prepare_search, prepare_spec
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import SpecError
from pmlray.notebook_html import facts_html
from pmlray.study.search.plan import SearchPlan, plan_search
from pmlray.types import Observation

if TYPE_CHECKING:
    from pandas import DataFrame

    from pmlray.api.follower import Announce
    from pmlray.api.search_run import SearchReport
    from pmlray.law import LawSummary
    from pmlray.study.findings.result import SearchResult


@dataclass(frozen=True, repr=False)
class Search:
    """One search and the folder of its results; `Search.load` makes one.

    Running the same search on the same store continues it. One that is opened by its store is read
    and neither planned nor run.

    Attributes:
        spec: what is searched.
        profile: where and how packs run.
        store: folder of the results, which need not exist yet.
        tracking_uri: MLflow's; by default MLFLOW_TRACKING_URI, the profile's, or a database in the
            store.
        address: a Ray cluster; by default RAY_ADDRESS, or Ray is started on this machine.

    Example:
        >>> search = Search.load("searches/smoke.yaml", store="runs/smoke")
        >>> search.plan().device            # before anything is started; search.run() starts it
        'CPU core'
        >>> search = Search.load("runs/smoke")      # its results, from wherever they lie
        >>> len(search.to_frame()), search.law()
        (14, LawSummary(...))
    """

    spec: SearchSpec
    profile: ClusterProfile
    store: Path
    tracking_uri: str | None = None
    address: str | None = None
    given: PreparedSearch | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Search({self.search_id}, store={str(self.store)!r})"

    def _repr_html_(self) -> str:
        if not (self.store / SEARCH_FILE).is_file():
            return facts_html(self.search_id, {"store": self.store, "state": "not started"})
        from pmlray.study.findings.answer import plain_answer

        result = self.result()
        told = {"store": self.store, "answer": " ".join(plain_answer(result))}
        return facts_html(self.search_id, told | result.overview())

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
        """Read a search from its YAML file or its store, or take a spec made in Python; starts
        nothing.

        Args:
            source: the file; or the folder of a search's results, finished or not, to read them
                with no other argument; or a spec, whose task's files are relative to the working
                folder.
            overrides: keys that replace those of the file, as `["budget.gpu_seconds=600"]`.
            store: folder of the results; by default that of `pmlray search`.
            profile: where and how packs run; by default this machine's CPU.
            tracking_uri: MLflow's; by default MLFLOW_TRACKING_URI, the profile's, or a database
                in the store.
            address: a Ray cluster; by default RAY_ADDRESS, or Ray is started on this machine.

        Returns:
            The search, with the base's dtype that its store was begun with, else the device's, and
            a hub model without a revision at the commit that its store was begun with, else at
            that of now.

        Raises:
            SpecError, DataError, ModelError: the message says what to correct.
            StoreError: the folder is no store, or its spec cannot be read: it is damaged, or of
                another version of pmlray.

        Example:
            >>> search = Search.load("searches/smoke.yaml", overrides=["budget.gpu_seconds=600"])
            >>> search.spec.budget.gpu_seconds
            600.0
            >>> Search.load("runs/smoke").law()
            LawSummary(...)
        """
        from pmlray.api.stores import kept_model, read_spec, settled_in, store_folder

        if not isinstance(source, SearchSpec) and Path(source).is_dir():
            if overrides or any(x is not None for x in (store, profile, tracking_uri, address)):
                raise SpecError(
                    f"{source} is a folder of results, which is only read: overrides, store,"
                    " profile, tracking_uri and address are for a search's YAML file"
                )
            folder = Path(source).absolute()
            return cls(read_spec(folder), read_profile(None), folder)
        settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
        kept = kept_model(store, settings)
        if isinstance(source, SearchSpec):
            prepared = prepare_spec(source, Path(), kept)
        else:
            prepared = prepare_search(Path(source), overrides, kept)
        folder = store_folder(store, prepared.spec.search_id, settings)
        found = settled_in(folder, prepared, settings)
        return cls(found.spec, settings, folder, tracking_uri, address, found)

    @property
    def prepared(self) -> PreparedSearch:
        """Spec with its files read and its model found; SpecError where the search was opened by
        its store."""
        if self.given is None:
            raise SpecError(
                f"{self.store} was opened to be read; Search.load with the search's YAML file and"
                f" store={str(self.store)!r} plans it, runs it or continues it"
            )
        return self.given

    @property
    def search_id(self) -> str:
        """Name of the search, with a hash of all settings that differ from the defaults."""
        return self.spec.search_id

    def plan(self) -> SearchPlan:
        """Plan the search: candidates, predicted cost and the first pack; starts nothing.

        Returns:
            The plan, with costs in gpu_seconds, by rates that are guesses until measured, and,
            where the store has runs at several placements, which of these needs the fewest
            parameters.

        Raises:
            DesignError: the budget is too small for the first pack.
            SpecError: the search was opened by its store.

        Example:
            >>> print(Search.load("searches/smoke.yaml").plan().describe())
            smoke-...: 12 design points x 1 replicates
            ...
        """
        plan = plan_search(self.prepared, self.profile.gpus_per_pack > 0)
        if not plan.places or not (self.store / SEARCH_FILE).is_file():
            return plan
        law = self.law()
        return plan if law is None else replace(plan, choices=law.choices())

    def run(
        self, *, replay: str | Path | None = None, announce: Announce | None = None
    ) -> SearchReport:
        """Run the search, or continue it, to its end.

        Args:
            replay: a table of measurements to use instead of training (no Ray).
            announce: called with every change, and every second while packs train, from a thread
                of its own; by default progress is shown on stderr.

        Returns:
            The result; its `to_json()` is what `pmlray search --json` prints.

        Raises:
            SpecError, ModelError, DesignError: found before anything starts; SpecError also where
                the search was opened by its store.
            DataError: the table of `replay` cannot be read.
            StoreError: the store holds another search.
            RunError: packs keep failing.

        Example:
            >>> search = Search.load("searches/smoke.yaml", store="runs/smoke")
            >>> found = search.run()            # trains on Ray; a repeated call continues
            >>> found.page.name, found.result.law
            ('report.html', LawSummary(...))
        """
        from pmlray.api.live_progress import live_progress
        from pmlray.api.search_run import SearchRun, run_search
        from pmlray.api.tracking import tracking_uri_for

        uri = tracking_uri_for(self.store, self.profile, self.tracking_uri)
        table = None if replay is None else Path(replay)
        run = SearchRun(self.prepared, self.profile, self.store, uri, self.address, table)
        with own_signals():
            if announce is not None:
                return run_search(run, announce)
            with live_progress() as shown:
                return run_search(run, shown)

    def observations(self) -> tuple[Observation, ...]:
        """Return everything measured so far, in the order in which it was chosen.

        Returns:
            One observation per finished run; failed runs have none.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.

        Example:
            >>> runs = Search.load("runs/smoke").observations()
            >>> sorted({o.point.lora_rank for o in runs})
            [1, 2, 4, 8]
        """
        from pmlray.api.stores import open_store

        return open_store(self.store)[1].observations()

    def result(self) -> SearchResult:
        """Read what is measured so far, with failures, costs, and the laws of loss and of recall.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.
            DataError: exact recall does not count the same in all runs.

        Example:
            >>> found = Search.load("runs/smoke").result()
            >>> found.gpu_seconds.spent < found.gpu_seconds.budget
            True
        """
        from pmlray.api.stores import read_result

        return read_result(self.store)

    def to_frame(self) -> DataFrame:
        """Return everything measured so far as a pandas frame, a row for each observation.

        Its columns have the names of `Observation`, recall's with `_recall` after them; losses are
        nats per supervised token. `read_law_data` reads a CSV of it.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.
            SpecError: pandas is not installed.

        Example:
            >>> runs = Search.load("runs/smoke").to_frame()
            >>> runs.groupby("lora_rank").delta_loss.mean().is_monotonic_increasing
            True
        """
        from pmlray.api.frame import frame_of

        return frame_of(self.spec, self.observations())

    def law(self) -> LawSummary | None:
        """Fit the law to what is measured so far.

        Returns:
            The law with its intervals and targets; None while the observations determine none.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.

        Example:
            >>> law = Search.load("runs/smoke").law()
            >>> law.predict(lora_rank=8, seq_len=64).far
            False
        """
        from pmlray.study.findings.fitted_runs import fit_observations

        return fit_observations(self.spec, self.observations())

    def report(self) -> Path:
        """Write the report of what is measured so far.

        Returns:
            Path of its HTML page, in the folder `report` of the store.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.
            OSError: the folder cannot be written.

        Example:
            >>> Search.load("runs/smoke").report().name
            'report.html'
        """
        from pmlray.api.search_run import report_store

        return report_store(self.store).page
