"""Every file in cluster/ against the schema of its kind, and what the kinds have in common."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from pmlray.backends.ray.jobs import JOB_ENVIRONMENT
from pmlray.config import ClusterProfile, load_spec

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "tests" / "schemas"
CORE_KINDS = ("Service", "PersistentVolumeClaim", "Deployment", "StatefulSet")


def documents(name: str) -> list[Any]:
    return [d for d in yaml.safe_load_all((CLUSTER / name).read_text()) if d is not None]


@cache
def registry() -> Registry:
    names = ("kubernetes.json", "kuberay.json")
    contents = {name: json.loads((SCHEMAS / name).read_text()) for name in names}
    return Registry().with_resources((n, Resource.from_contents(c)) for n, c in contents.items())


def faults(schema: dict[str, Any], value: Any) -> list[str]:
    found = Draft202012Validator(schema, registry=registry()).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


def object_faults(value: dict[str, Any]) -> list[str]:
    """What is wrong with a Kubernetes object of one of the kinds that cluster/ holds."""
    kind = value["kind"]
    file = "kuberay.json" if value["apiVersion"] == "ray.io/v1" else "kubernetes.json"
    assert file == "kuberay.json" or kind in CORE_KINDS
    return faults({"$ref": f"{file}#/$defs/{kind}"}, value)


KUBERNETES = ("kuberay/storage.yaml", "kuberay/cluster.yaml", "kuberay/job.yaml",
              "mlflow/kubernetes.yaml")  # fmt: skip


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_objects(name: str) -> None:
    assert [fault for value in documents(name) for fault in object_faults(value)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (["spec", "authOption"], {"mode": "token"}),
        (["spec", "authOptions", "mode"], "on"),
        (["spec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"], []),
        (["spec", "workerGroupSpecs", 0, "maxReplicas"], "8"),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "tolerations", 0, "op"], "Exists"),
    ],
)
def test_a_mistake_in_a_cluster_is_found(path: list[str | int], wrong: Any) -> None:
    """The schemas are closed: a slip of the pen does not pass for an unknown key."""
    [value] = documents("kuberay/cluster.yaml")
    place = value
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = wrong
    assert len(object_faults(value)) == 1


def test_compose_file() -> None:
    [value] = documents("mlflow/compose.yaml")
    schema = json.loads((SCHEMAS / "compose.json").read_text())
    assert faults(schema, value) == []
    value["services"]["mlflow"]["port"] = ["5000:5000"]
    assert len(faults(schema, value)) == 1


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_files(cloud: str) -> None:
    """Ray's own schema and checks, on the file as it is filled up with Ray's defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    [value] = documents(f"ray_up/{cloud}.yaml")
    validate_config(prepare_config(value))
    kinds = value["available_node_types"]
    assert value["provider"]["type"] == cloud
    head, worker = kinds["head"]["node_config"], kinds["gpu_spot"]["node_config"]
    spot = {"aws": {"MarketType": "spot"}, "gcp": "SPOT"}[cloud]
    assert spot in (
        worker.get("InstanceMarketOptions"),
        worker.get("scheduling", {}).get("provisioningModel"),
    )
    assert not {"InstanceMarketOptions", "scheduling"} & set(head)
    assert kinds["head"]["resources"] == {"CPU": 0} and kinds["gpu_spot"]["resources"]["GPU"] == 1
    start = value["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in start and "--dashboard-host=127.0.0.1" in start


def test_the_job_of_kuberay_has_the_cluster_of_its_neighbour() -> None:
    [cluster], [job] = documents("kuberay/cluster.yaml"), documents("kuberay/job.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == documents("runtime_env.yaml")[0]


def test_kuberay_trains_on_spot_workers_and_drives_from_a_safe_head() -> None:
    [cluster] = documents("kuberay/cluster.yaml")
    head, [worker] = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["minReplicas"] == 0 < worker["maxReplicas"]
    container = worker["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    claim = documents("kuberay/storage.yaml")[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (head, worker):
        [volume] = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shared"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_runtime_environment_is_one_that_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    [value] = documents("runtime_env.yaml")
    assert RuntimeEnv(**value).env_vars() == JOB_ENVIRONMENT


def test_profiles() -> None:
    for path in (CLUSTER / "profiles").glob("*.yaml"):
        storage = load_spec(ClusterProfile, path).storage
        assert storage is None or Path(storage).is_absolute(), path


def test_no_yaml_file_goes_unchecked() -> None:
    checked = {*KUBERNETES, "mlflow/compose.yaml", "ray_up/aws.yaml", "ray_up/gcp.yaml",
               "runtime_env.yaml"}  # fmt: skip
    found = {str(p.relative_to(CLUSTER)) for p in CLUSTER.rglob("*.y*ml") if p.is_file()}
    assert {name for name in found if not name.startswith("profiles/")} == checked
