"""Cluster profiles, which set where packs run: validated form of `cluster/profiles/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from pmlray.config.spec_base import Part, PositiveInt
from pmlray.config.store_folder import why_no_folder
from pmlray.config.tracking_address import why_not_tracked


def _refused(key: str, why: Callable[[str], str | None]) -> AfterValidator:
    """Return a check of a text by a function that says why it is refused."""

    def check(given: str) -> str:
        if (reason := why(given)) is not None:
            raise ValueError(f"{key}: {reason}")
        return given

    return AfterValidator(check)


Storage = Annotated[str, _refused("storage", why_no_folder)]
TrackingUri = Annotated[str, _refused("tracking_uri", why_not_tracked)]
# MLflow's own limit of names.
TrackingExperiment = Annotated[str, Field(min_length=1, max_length=500)]


class ClusterProfile(Part):
    """One kind of cluster.

    `gpus_per_pack` 0 trains on the CPU with `cpus_per_pack` cores (None: all of the machine's).
    `workers_per_pack` above 1 is for a base that no single device holds: DeepSpeed ZeRO-3 shards it
    over that many workers, each with `gpus_per_pack` GPUs or its share of `cpus_per_pack`, and a
    pack's runs train one by one (adapters of linear modules, plain fine-tuning).
    `concurrent_packs` train at once, where there are devices for them (None: one per device that
    the cluster has when the search starts; set it where nodes join later). Each is chosen from
    earlier packs' measurements only: more of them find the law sooner, but with more runs.
    `storage` is the folder of all searches' stores, visible to every node. `tracking_uri` is
    MLflow's, `tracking_experiment` the experiment there of searches that are new to it (None: one
    by the name of each). The search gives up after `max_pack_failures` failed packs in a row. At
    most `checkpoint_seconds` of training are lost when a worker dies.

    Example:
        >>> two_at_a_time = ClusterProfile(cpus_per_pack=4, concurrent_packs=2)
        >>> Search.load("searches/smoke.yaml", profile=two_at_a_time).profile.cpus_per_pack
        4
    """

    gpus_per_pack: Annotated[int, Field(ge=0, le=1)] = 0
    cpus_per_pack: PositiveInt | None = None
    workers_per_pack: PositiveInt = 1
    concurrent_packs: PositiveInt | None = None
    storage: Storage | None = None
    tracking_uri: TrackingUri | None = None
    tracking_experiment: TrackingExperiment | None = None
    max_pack_failures: PositiveInt = 2
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
