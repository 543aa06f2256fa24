"""Studies and single packs, one after the other on one Ray, as a process that tests start:
`python -m tests.ray_rounds N FOLDER [ADDRESS]`; one line of JSON after each.

A line: which round it was, how many runs have a result, which part of the cluster's CPUs is free,
and which cluster the driver and an actor find when they look for one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray
from ray._private.services import canonicalize_bootstrap_address_or_die

from pmlray.backends.ray.run_packs import run_pack_on_ray, run_packs_on_ray
from pmlray.backends.ray.session import ray_session
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.live_packs import Calibration
from pmlray.types import DesignPoint, Pack, PackResult

SMOKE = Path(__file__).parents[1] / "searches" / "smoke.yaml"
# With less than all of them free, the next worker would not start.
PROFILE = ClusterProfile(cpus_per_pack=2)


class OnePack:
    """A study of one pack."""

    def __init__(self, pack: Pack) -> None:
        self._packs = [pack]
        self.results: list[PackResult] = []

    def spread_over(self, n_devices: int) -> None:
        """It has no more than one."""

    def to_calibrate(self) -> Pack | None:
        return None

    def calibrated(self, found: Calibration) -> None:
        raise AssertionError("nothing was to be calibrated")

    def next_pack(self) -> Pack | None:
        return self._packs.pop() if self._packs else None

    def absorb(self, result: PackResult) -> None:
        self.results.append(result)


@ray.remote(num_cpus=0)
class Looker:
    """An actor that looks for the cluster it is in."""

    def found(self) -> str:
        return canonicalize_bootstrap_address_or_die("auto")


def tell(number: int, what: str, results: list[PackResult], since: float) -> None:
    free = ray.available_resources().get("CPU", 0.0) / ray.cluster_resources()["CPU"]
    looker = Looker.remote()
    found = {canonicalize_bootstrap_address_or_die("auto"), ray.get(looker.found.remote())}
    ray.kill(looker)
    told = {
        "round": number,
        "what": what,
        "done": sum(len(result.observations) for result in results),
        "free": free,
        "found": sorted(found),
        "cluster": ray.get_runtime_context().gcs_address,
        "seconds": round(time.monotonic() - since, 1),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def one_round(search: PreparedSearch, number: int, folder: Path) -> None:
    run = search.plan_run(DesignPoint(1, 16, 2), "sft", 0, number, "law")
    pack, began = Pack(0, (run,)), time.monotonic()
    law, training = FileStore(folder / f"law-{number}"), FileStore(folder / f"training-{number}")
    with law.driver_lock() as driver:
        study = OnePack(pack)
        run_packs_on_ray(search, study, law.folder, PROFILE, driver)
        tell(number, "study", study.results, began)
    began = time.monotonic()
    with training.driver_lock() as driver:
        result = run_pack_on_ray(search, pack, training, PROFILE, driver)
        tell(number, "pack", [result], began)


if __name__ == "__main__":
    n_rounds, root = int(sys.argv[1]), Path(sys.argv[2])
    spec = prepare_search(SMOKE, ())
    with ray_session(sys.argv[3] if len(sys.argv) > 3 else None):
        for i in range(n_rounds):
            one_round(spec, i, root)
