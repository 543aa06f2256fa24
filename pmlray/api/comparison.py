"""`pmlray.Comparison`: training methods compared at equal cost, in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.environment.process import own_signals
from pmlray.config import ClusterProfile
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import read_profile
from pmlray.config.prepared_search import PreparedSearch, prepare_comparison
from pmlray.notebook_html import facts_html

if TYPE_CHECKING:
    from pmlray.api.comparison_run import ComparisonPlan, ComparisonReport
    from pmlray.study.search.progress import Progress


@dataclass(frozen=True, repr=False)
class Comparison:
    """One comparison and the folder of its results; `Comparison.load` makes one.

    Running the same comparison on the same store continues it.

    Attributes:
        spec: what is compared.
        prepared: the search whose runs it makes, with its files read and its model found.
        profile: where and how packs run.
        store: folder of the results, which need not be there yet.
        tracking_uri: MLflow's; by default MLFLOW_TRACKING_URI, the profile's, or a database in the
            store.
        address: a Ray cluster; by default RAY_ADDRESS, or Ray is started on this machine.

    Example:
        >>> comparison = Comparison.load("searches/comparisons/smoke.yaml")
        >>> comparison.plan().compared_runs     # before anything is started; run() starts it
        12
    """

    spec: CompareSpec
    prepared: PreparedSearch
    profile: ClusterProfile
    store: Path
    tracking_uri: str | None = None
    address: str | None = None

    def __repr__(self) -> str:
        return f"Comparison({self.spec.compare_id}, store={str(self.store)!r})"

    def _repr_html_(self) -> str:
        methods = ", ".join(self.spec.methods)
        return facts_html(self.spec.compare_id, {"store": self.store, "methods": methods})

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        overrides: Sequence[str] = (),
        store: str | Path | None = None,
        profile: ClusterProfile | str | Path | None = None,
        tracking_uri: str | None = None,
        address: str | None = None,
    ) -> Comparison:
        """Read a comparison from its YAML file; starts nothing.

        Args:
            source: the file, such as those of searches/comparisons.
            overrides: keys that replace those of the file, as `["seeds=[0, 1]"]`.
            store: folder of the results; by default that of `pmlray compare`.
            profile: where and how packs run; by default this machine's CPU.
            tracking_uri: MLflow's; by default MLFLOW_TRACKING_URI, the profile's, or a database
                in the store.
            address: a Ray cluster; by default RAY_ADDRESS, or Ray is started on this machine.

        Returns:
            The comparison, with its store in the default place where none is given.

        Raises:
            SpecError, DataError, ModelError: the message says what to correct.

        Example:
            >>> file = "searches/comparisons/smoke.yaml"
            >>> Comparison.load(file, overrides=["seeds=[0, 1]"]).plan().compared_runs
            24
        """
        from pmlray.api.stores import kept_model, store_folder

        settings = profile if isinstance(profile, ClusterProfile) else read_profile(profile)
        kept = kept_model(store, settings)
        spec, prepared = prepare_comparison(Path(source), overrides, kept)
        folder = store_folder(store, prepared.spec.search_id, settings)
        return cls(spec, prepared, settings, folder, tracking_uri, address)

    def plan(self) -> ComparisonPlan:
        """Count the runs and their approximate gpu_seconds; starts nothing.

        Returns:
            `tuning_runs`, `compared_runs` and `gpu_seconds_about`.

        Example:
            >>> plan = Comparison.load("searches/comparisons/smoke.yaml").plan()
            >>> plan.tuning_runs, plan.compared_runs
            (12, 12)
        """
        from pmlray.api.comparison_run import planned_runs

        return planned_runs(self.spec, self.prepared, self.profile)

    def run(self, announce: Callable[[Progress], None] | None = None) -> ComparisonReport:
        """Run the comparison, or continue it, to its end.

        Args:
            announce: called with every change, and every second while packs train, from a thread
                of its own; by default progress is shown on stderr.

        Returns:
            The result; its `to_json()` is what `pmlray compare --json` prints.

        Raises:
            RunError: packs keep failing.
            StoreError: the store holds another comparison.

        Example:
            >>> found = Comparison.load("searches/comparisons/smoke.yaml").run()  # trains on Ray
            >>> print(found.text)
            ...
        """
        from pmlray.api.comparison_run import ComparisonRun, run_comparison
        from pmlray.api.live_progress import live_progress
        from pmlray.api.tracking import tracking_uri_for

        uri = tracking_uri_for(self.store, self.profile, self.tracking_uri)
        run = ComparisonRun(self.spec, self.prepared, self.profile, self.store, uri, self.address)
        with own_signals():
            if announce is not None:
                return run_comparison(run, announce)
            with live_progress() as shown:
                return run_comparison(run, shown)
