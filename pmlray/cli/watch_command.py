"""`pmlray watch`: follow a study that runs elsewhere, from its store or a search from MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import typer

from pmlray.api.live_progress import shown_live
from pmlray.api.search import Search
from pmlray.api.status import NO_LAW, StudyStatus, status_of
from pmlray.cli.output import tell
from pmlray.cli.search_source import SOURCE_OPTION, in_mlflow, is_file, search_id_of
from pmlray.config import SearchSpec
from pmlray.live_packs import fresh_packs
from pmlray.study.search.live import with_live

# Seconds between reads: neither notifies of changes, and a folder is cheaper to read than a server.
STORE_SECONDS, MLFLOW_SECONDS = 2.0, 10.0

# Returns the current status, and how the study ended, None while it runs.
Poll = Callable[[], tuple[StudyStatus, str | None]]


def watch(
    search: str = typer.Argument(
        ...,
        help="The store of a search or a comparison, or a search's file; with --from, the search's"
        " id or its file.",
    ),
    source: str = SOURCE_OPTION,
    once: bool = typer.Option(False, "--once", help="Show where it stands now, and return."),
) -> None:
    """Follow a search or a comparison until it ends, in its own display; nothing is changed."""
    kind = "search"
    if source is not None and in_mlflow(source):
        look, pause = _at_mlflow(source, search_id_of(search)), MLFLOW_SECONDS
    else:
        folder, pause = _store_of(search, source), STORE_SECONDS
        from pmlray.config.stored_files import COMPARISON_FILE

        if (folder / COMPARISON_FILE).is_file():
            look, kind = _at_comparison(folder), "comparison"
        else:
            look = _at_search(folder)
    last: StudyStatus | None = None
    try:
        with shown_live("pmlray watch", "looking ...") as show:
            while True:
                standing, ended = look()
                if standing != last:
                    show(standing)
                last = standing
                if once or ended is not None:
                    break
                # Poll, since neither a store nor MLflow notifies of changes; Ctrl-C ends it.
                time.sleep(pause)
    except KeyboardInterrupt:
        tell("no longer watching; what is watched goes on")
        raise typer.Exit(130) from None
    tell(ended or f"the {kind} is running")


def _store_of(search: str, source: str | None) -> Path:
    if source is not None:
        return Path(source).absolute() / search_id_of(search)
    if is_file(search):
        return Search.load(search).store
    return Path(search).absolute()


def _at_search(folder: Path) -> Poll:
    from pmlray.api.stores import open_store
    from pmlray.backends.store.file_store import DRIVER
    from pmlray.study.search.store_follower import FollowedSearch

    spec, store = open_store(folder)
    followed = FollowedSearch(spec, store)

    def look() -> tuple[StudyStatus, str | None]:
        # The lease is read first, so that results written just before the driver ended are seen.
        over = store.leases.is_free(DRIVER)
        packs = () if over else fresh_packs(folder)
        standing = status_of(with_live(followed.look(final=over), packs, by_pack=False))
        again = "nobody is at work on it; the same pmlray search continues it"
        ended = again if standing.n_running else "the search has ended; pmlray report shows it"
        return standing, ended if over else None

    return look


def _at_comparison(folder: Path) -> Poll:
    from pmlray.backends.store.file_store import DRIVER, FileStore
    from pmlray.config.compare_spec import CompareSpec
    from pmlray.config.stored_files import COMPARISON_FILE, read_stored
    from pmlray.study.comparison.progress import FollowedComparison
    from pmlray.study.report.comparison_report import shown_row

    store = FileStore(folder)
    followed = FollowedComparison(read_stored(CompareSpec, folder / COMPARISON_FILE), store)

    def look() -> tuple[StudyStatus, str | None]:
        over = store.leases.is_free(DRIVER)
        progress, results = followed.look()
        packs = () if over else fresh_packs(folder)
        progress = with_live(progress, packs, by_pack=False)
        standing = replace(status_of(progress), table=tuple(map(shown_row, results)))
        missing = followed.spec.n_runs - progress.n_done - progress.n_failed
        page = folder / "report" / "comparison.html"
        again = "nobody is at work on it; the same pmlray compare continues it"
        ended = again if missing > 0 else f"the comparison has ended; {page} shows it"
        return standing, ended if over else None

    return look


def _at_mlflow(uri: str, search_id: str) -> Poll:
    from pmlray.backends.mlflow.watch import MlflowWatch

    mirror = MlflowWatch(uri, search_id)

    def look() -> tuple[StudyStatus, str | None]:
        found = mirror.look()
        ended = None if found.status == "RUNNING" else f"the search has ended: {found.status}"
        return mirrored_standing(mirror.spec, found.metrics), ended

    return look


def mirrored_standing(spec: SearchSpec, metrics: Mapping[str, float]) -> StudyStatus:
    """Return a search's status from the metrics that its driver logged to MLflow."""

    def told(name: str, before: float = 0.0) -> float:
        return metrics.get(f"progress/{name}", before)

    phase = "memft" if "progress/memft_gpu_seconds_left" in metrics else "law"
    return StudyStatus(
        phase=phase,
        n_done=int(told("n_done")),
        n_running=int(told("n_running")),
        n_failed=int(told("n_failed")),
        spent=told("gpu_seconds_spent"),
        left=told(f"{phase}_gpu_seconds_left", spec.budget.law_seconds),
        law=_law_line(metrics),
        known=metrics.get("law/target_relative_interval"),
        needed=told(f"{phase}_gpu_seconds_open", math.inf),
        live=_live_line(metrics),
    )


def _live_line(metrics: Mapping[str, float]) -> tuple[str, ...]:
    steps, wanted = metrics.get("live/steps", 0.0), metrics.get("live/train_steps", 0.0)
    # Packs that have ended report nothing more, but their last figures stay in MLflow.
    if not steps or metrics.get("progress/n_running", 0.0) == 0:
        return ()
    said = f"when last told, {steps:.0f} of {wanted:.0f} adapter-steps of the packs that train"
    loss = metrics.get("live/mean_loss")
    return (said if loss is None else f"{said}, mean loss {loss:.3g}",)


def _law_line(metrics: Mapping[str, float]) -> str:
    if "law/coef" not in metrics:
        return NO_LAW
    parts = [f"C {metrics['law/coef']:.3g}"]
    for symbol, name in {"alpha": "rank_exponent", "beta": "len_exponent"}.items():
        half = metrics[f"law/{name}_width"] / 2
        parts.append(f"{symbol} {metrics[f'law/{name}']:.3f} +-{half:.3f}")
    return f"law: {', '.join(parts)}"
