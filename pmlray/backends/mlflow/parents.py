"""Parent run of a study in MLflow: one per store, in an experiment that its login may write to."""

from __future__ import annotations

import getpass
import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.credentials import read_mlflow_creds

from pmlray.errors import TrackerAway

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 1000
# Tags of a parent run. Comparisons have the kind of a search, too.
STUDY, KIND, STORE_ID, STORE = (
    "pmlray.search_id", "pmlray.kind", "pmlray.store_id", "pmlray.store",
)  # fmt: skip
USER = "mlflow.user"
RUN_ID = re.compile(r"[0-9a-f]{32}")
# By it pages of MLflow before 3.17 choose between training and GenAI.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True, slots=True)
class StudyInMlflow:
    """One store of a search or comparison, as MLflow tells it from others.

    experiment: name of the experiment in which a new parent run is made. store_id: of the store.
    earlier_parent: id of the run that took this store's entries before; it stays the parent,
    whatever `experiment` says now.
    """

    study_id: str
    experiment: str
    store_id: str
    folder: Path
    earlier_parent: str | None = None

    @property
    def artifacts(self) -> Path:
        """Folder of artifacts where MLflow is a database; a server decides that itself."""
        return self.folder / "mlflow-artifacts"

    def tags(self) -> dict[str, str]:
        """Return what tells the parent of this store from those of others."""
        store = f"{socket.gethostname()}:{self.folder}"
        return {
            STUDY: self.study_id,
            KIND: "search",
            STORE_ID: self.store_id,
            STORE: store,
            # A column that tables of runs begin with: it tells stores of one search apart.
            "mlflow.source.name": store,
            "mlflow.source.type": "LOCAL",
        }


def login_name() -> str:
    """Return who logs: the login of MLflow, else that of this machine."""
    if name := read_mlflow_creds().username:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # In a container whose user has no name.
        return "unknown"


def find_parent(client: MlflowClient, study: StudyInMlflow) -> Run | None:
    """Return the parent run of a store; None where MLflow has none that this login may write to.

    Both the run of before and one made elsewhere for the same store count. Its tags then say where
    the store is now.
    """
    for run in _candidates(client, study):
        try:
            for key, value in study.tags().items():
                client.set_tag(run.info.run_id, key, value)
        except MlflowException as error:
            if not is_denied(error):
                raise
        else:
            return run
    return None


def _candidates(client: MlflowClient, study: StudyInMlflow) -> list[Run]:
    """Return the runs that may be a store's parent: the one of before, then those with its id."""
    found = search_everywhere(
        client, f"tags.`{STORE_ID}` = '{study.store_id}' and tags.`{STUDY}` = '{study.study_id}'"
    )
    earlier = study.earlier_parent or ""
    if RUN_ID.fullmatch(earlier) is None or any(run.info.run_id == earlier for run in found):
        return found
    try:
        run = client.get_run(earlier)
    except MlflowException as error:
        if not (is_denied(error) or is_missing(error)):
            raise
        return found
    tags = run.data.tags
    # Two stores of one search shared a parent until stores had ids: the first that goes on keeps
    # it, and the other gets a parent of its own.
    taken = tags.get(STORE_ID, study.store_id) != study.store_id
    usable = run.info.lifecycle_stage == "active" and tags.get(STUDY) == study.study_id
    return [run, *found] if usable and not taken else found


def create_parent(
    client: MlflowClient, study: StudyInMlflow, name: str, tags: Mapping[str, str], served: bool
) -> Run:
    """Create the parent run of a store in its experiment, or in the login's own where it may not
    write to that one; TrackerAway where it may write to neither.

    served: by a server, which decides where artifacts lie.
    """
    user = login_name()
    own = f"{study.experiment} ({user})"
    for experiment in (study.experiment, own):
        try:
            run = client.create_run(
                _open_experiment(client, experiment, None if served else study.artifacts),
                run_name=name,
                tags={**tags, **study.tags(), USER: user},
            )
        except MlflowException as error:
            if not is_denied(error):
                raise
        else:
            if experiment == own:
                log.warning(
                    "%s may not write to the experiment %s of MLflow: the runs go to %s; to have"
                    " them there, ask its owner for EDIT",
                    user, study.experiment, own,
                )  # fmt: skip
            return run
    raise TrackerAway(
        f"{user} may write to no experiment of MLflow, neither to {study.experiment} nor to {own}:"
        " ask its administrator, or name one as tracking_experiment in the profile"
    )


def _open_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Return the id of an experiment, made if it is not there; artifacts: folder where it is a
    database, which would otherwise put them into the current working folder."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if artifacts is None else artifacts.as_uri()
        return client.create_experiment(name, location, EXPERIMENT_TAGS)
    if found.lifecycle_stage != "active":
        raise TrackerAway(
            f"the experiment {name} of MLflow was deleted: restore it (mlflow experiments restore"
            f" --experiment-id {found.experiment_id}), or name another as tracking_experiment in"
            " the profile"
        )
    return found.experiment_id


def newest_parent(client: MlflowClient, study_id: str) -> Run | None:
    """Return the parent run of a search, of its newest store where it has several, which is told;
    None where MLflow shows none to this login."""
    found = search_everywhere(client, f"tags.`{STUDY}` = '{study_id}' and tags.`{KIND}` = 'search'")
    found.sort(key=lambda run: run.info.start_time, reverse=True)
    if len(found) > 1:
        newest, *others = (run.data.tags.get(STORE, "a store of before") for run in found)
        log.warning(
            "MLflow has %s from %d stores: this is that of %s, begun last, not of %s",
            study_id, len(found), newest, ", ".join(others),
        )  # fmt: skip
    return found[0] if found else None


def search_everywhere(client: MlflowClient, condition: str) -> list[Run]:
    """Return the runs of all experiments that this login may see."""
    found = all_pages(lambda token: client.search_experiments(max_results=PAGE, page_token=token))
    return search_all(client, [experiment.experiment_id for experiment in found], condition)


def search_all(client: MlflowClient, experiments: list[str], condition: str) -> list[Run]:
    """Return all runs of some experiments that meet a condition."""
    if not experiments:
        return []
    return all_pages(
        lambda token: client.search_runs(experiments, condition, max_results=PAGE, page_token=token)
    )


def all_pages(page_of: Callable[[str | None], PagedList[T]]) -> list[T]:
    """Return the entries of all pages; page_of: returns the page that a token stands for."""
    found: list[T] = []
    token: str | None = None
    while True:
        page = page_of(token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def is_denied(error: MlflowException) -> bool:
    """Return whether a login has no right to what it asked."""
    return error.error_code == "PERMISSION_DENIED"


def is_missing(error: MlflowException) -> bool:
    """Return whether what was asked for is not there."""
    return error.error_code == "RESOURCE_DOES_NOT_EXIST"
