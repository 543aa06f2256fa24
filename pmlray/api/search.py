"""`pmlray.Search`: a search for a memory law, in Python, for notebooks and programs.

Frameworks are imported by what needs them: validating, planning and reading a store import none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.environment.process import own_signals
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.load import read_profile
from pmlray.config.prepared_search import PreparedSearch, prepare_search, prepare_spec
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.study.search.plan import SearchPlan, plan_search
from pmlray.types import Observation

if TYPE_CHECKING:
    from pmlray.api.follower import Announce
    from pmlray.api.search_run import SearchReport
    from pmlray.law import LawSummary


@dataclass(frozen=True)
class Search:
    """One search and the folder of its results; `Search.load` makes one.

    Running the same search on the same store continues it.

    Attributes:
        prepared: the spec with its files read and its model found.
        profile: where and how packs run.
        store: folder of the results, which need not exist yet.
        tracking_uri: MLflow's; by default MLFLOW_TRACKING_URI, the profile's, or a database in the
            store.
        address: a Ray cluster; by default RAY_ADDRESS, or Ray is started on this machine.

    Example:
        >>> search = Search.load("searches/smoke.yaml")
        >>> search.plan().full_grid         # gpu_seconds, before anything is started
        >>> search.run().answer             # a repeated call continues
        >>> search.law().targets            # predictions with their 90 % intervals
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
        """Read a search from its YAML file, or take a spec made in Python; starts nothing.

        Args:
            source: the file, or a spec, whose task's files are relative to the working folder.
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
            StoreError: the spec in the store cannot be read.

        Example:
            >>> search = Search.load("searches/smoke.yaml", overrides=["budget.gpu_seconds=600"])
            >>> search.search_id
        """
        from pmlray.api.stores import kept_model, settled_in, store_folder

        settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
        kept = kept_model(store, settings)
        if isinstance(source, SearchSpec):
            prepared = prepare_spec(source, Path(), kept)
        else:
            prepared = prepare_search(Path(source), overrides, kept)
        folder = store_folder(store, prepared.spec.search_id, settings)
        found = settled_in(folder, prepared, settings)
        return cls(found, settings, folder, tracking_uri, address)

    @property
    def spec(self) -> SearchSpec:
        """Spec of the search."""
        return self.prepared.spec

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

        Example:
            >>> print(search.plan().describe())
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
            SpecError, ModelError, DesignError: found before anything starts.
            DataError: the table of `replay` cannot be read.
            StoreError: the store holds another search.
            RunError: packs keep failing.

        Example:
            >>> report = search.run()
            >>> print(report.page, *report.answer)
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
            >>> [(o.point.lora_rank, o.point.seq_len, o.delta_loss) for o in search.observations()]
        """
        from pmlray.api.stores import open_store

        return open_store(self.store)[1].observations()

    def law(self) -> LawSummary | None:
        """Fit the law to what is measured so far.

        Returns:
            The law with its intervals and targets; None while the observations determine none.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.

        Example:
            >>> if (law := search.law()) is not None:
            ...     print(law.fit.law.form, law.intervals["rank_exponent"])
        """
        from pmlray.study.findings.result import fit_observations

        return fit_observations(self.spec, self.observations())

    def report(self) -> Path:
        """Write the report of what is measured so far.

        Returns:
            Path of its HTML page, in the folder `report` of the store.

        Raises:
            StoreError: nothing was started yet, or the store is damaged.
            OSError: the folder cannot be written.

        Example:
            >>> webbrowser.open(search.report().as_uri())
        """
        from pmlray.api.search_run import report_store

        return report_store(self.store).page
