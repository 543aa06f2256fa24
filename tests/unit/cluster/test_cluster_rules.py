"""What holds for all of cluster/: no secrets, tokens wanted, versions pinned, small uploads."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.audit import pins

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
# A key that names a secret, and what may stand for its value: a reference or an environment's.
SECRET_NAME = re.compile(r"(password|secret|token|api_?key|access_?key|credential)", re.I)
# Kubernetes' and EC2's own keys that only sound so.
NO_SECRET = ("automountServiceAccountToken", "HttpTokens", "secretKeyRef")
REFERENCE = re.compile(r"^\$\{\w+:\?[^}]+\}$|^~/|^mlflow$|^token$")
# Values that look like keys wherever they stand: AWS, Google, GitHub, Hugging Face, PEM, long hex.
LOOKS_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|gh[pousr]_[0-9A-Za-z]{36}|hf_[0-9A-Za-z]{30,}"
    r"|-----BEGIN|\b[0-9a-f]{32,}\b|://[^/\s:@$]+:[^@\s$/]+@"
)


def test_no_file_holds_what_looks_like_a_secret() -> None:
    found = {
        str(path.relative_to(ROOT)): hit.group()
        for path in FILES
        if (hit := LOOKS_SECRET.search(re.sub(r"--hash=sha256:\w{64}\b", "", path.read_text())))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    ["key: AKIAABCDEFGHIJKLMNOP", "uri: postgresql://me:hunter2@host/db", "t: " + "0a" * 32],
)
def test_a_planted_secret_is_seen(text: str) -> None:
    assert LOOKS_SECRET.search(text)


def named_values(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every (key, text) of a YAML value; an entry {name, value} counts as key and text."""
    if isinstance(value, dict):
        if isinstance(value.get("name"), str) and isinstance(value.get("value"), str):
            yield value["name"], value["value"]
        for key, inner in value.items():
            yield from named_values(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from named_values(inner, at)
    elif isinstance(value, str):
        yield at, value


def test_what_is_named_a_secret_only_refers_to_one() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        for value in yaml.safe_load_all(path.read_text()):
            for key, text in named_values(value):
                if SECRET_NAME.search(key) and key not in NO_SECRET:
                    assert REFERENCE.search(text), f"{path.name}: {key}: {text}"


def test_every_cluster_wants_a_token_and_mlflow_a_password() -> None:
    wanted = {
        "Dockerfile": "RAY_AUTH_MODE=token",
        "kuberay/cluster.yaml": "authOptions:\n    mode: token",
        "kuberay/job.yaml": "authOptions:\n      mode: token",
        "ray_up/aws.yaml": "--env RAY_AUTH_MODE=token",
        "ray_up/gcp.yaml": "--env RAY_AUTH_MODE=token",
        "slurm/search.sbatch": "RAY_AUTH_MODE=token",
        "mlflow/serve.sh": "--app-name basic-auth",
    }
    for name, text in wanted.items():
        assert text in (CLUSTER / name).read_text(), name


def test_no_node_starts_its_workers_at_a_lower_priority() -> None:
    """Ray's default of 15 leaves them 14 % of a core beside one busy process."""
    wanted = {
        "Dockerfile": "RAY_worker_niceness=0",
        "kuberay/cluster.yaml": '{name: RAY_worker_niceness, value: "0"}',
        "kuberay/job.yaml": '{name: RAY_worker_niceness, value: "0"}',
        "ray_up/aws.yaml": "--env RAY_worker_niceness=0",
        "ray_up/gcp.yaml": "--env RAY_worker_niceness=0",
        "slurm/search.sbatch": "export RAY_worker_niceness=0",
        "README.md": "RAY_worker_niceness=0",
    }
    for name, text in wanted.items():
        assert text in (CLUSTER / name).read_text(), name
    starts = {
        str(path.relative_to(CLUSTER))
        for path in FILES
        if re.search(r"\bray start --|kind: Ray(Cluster|Job)", path.read_text())
    }
    assert starts and starts <= wanted.keys()


def test_versions_are_those_of_the_project() -> None:
    lock = dict(pin.split("==") for pin in pins((ROOT / "requirements.lock").read_text()))
    assert lock["ray"] == version("ray")
    for name in ("kuberay/cluster.yaml", "kuberay/job.yaml"):
        assert f'rayVersion: "{lock["ray"]}"' in (CLUSTER / name).read_text()
    assert f'"mlflow[auth]=={lock["mlflow"]}"' in (CLUSTER / "mlflow" / "Dockerfile").read_text()
    own = pins((CLUSTER / "requirements.txt").read_text())
    assert own and not {pin.split("==")[0] for pin in own} & lock.keys()
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    images = {
        image for path in FILES for image in re.findall(r"REGISTRY/pmlray:(\S+)", path.read_text())
    }
    assert project and images == {project.group(1)}
    used = [line for path in FILES for line in re.findall(r"image: (\S+)", path.read_text())]
    assert not [image for image in used if ":" not in image or image.endswith(":latest")]


def test_every_ray_job_submit_that_is_written_out_sends_the_archive() -> None:
    """Ray does not compress a folder, and pmlray's source alone is then above a megabyte."""
    places = [ROOT / "README.md", *FILES, *(ROOT / "pmlray").rglob("*.py")]
    texts = [path.read_text() for path in places]
    sent = [name for text in texts for name in re.findall(r"--working-dir (\S+)", text)]
    assert len(sent) >= 4 and set(sent) == {"job.zip"}


def test_a_submitted_folder_leaves_all_here_but_what_a_job_needs(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "upload.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[".git", ".venv"])
    with zipfile.ZipFile(package) as uploaded:
        sizes = {info.filename: info.compress_size for info in uploaded.infolist()}
    wanted = {"pmlray/__main__.py", "searches/smoke.yaml", "cluster/profiles/kuberay.yaml"}
    assert wanted <= set(sizes)
    beside = {name: size for name, size in sizes.items() if not name.startswith("pmlray/")}
    assert sum(beside.values()) < 20_000, sorted(beside, key=beside.__getitem__)[-5:]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_archive_that_the_readme_submits_is_below_a_megabyte(tmp_path: Path) -> None:
    (line,) = re.findall(r"^git archive .*$", (CLUSTER / "README.md").read_text(), re.MULTILINE)
    archive = tmp_path / "job.zip"
    subprocess.run(
        shlex.split(line.replace("job.zip", str(archive))), cwd=ROOT, check=True, timeout=60
    )
    assert archive.stat().st_size < 1_000_000
    with zipfile.ZipFile(archive) as sent:
        names = {name for name in sent.namelist() if not name.endswith("/")}
    assert {"pmlray/__main__.py", "searches/smoke.yaml", "cluster/profiles/kuberay.yaml"} <= names
    assert all(name.startswith(("pmlray/", "searches/", "cluster/profiles/")) for name in names)
    assert not [name for name in names if name.startswith("searches/tables/")]


def stub(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


class Slurm:
    """Stand-ins for Slurm, Ray and Python that write down how they were called."""

    def __init__(self, folder: Path, python: str) -> None:
        self.calls = folder / "calls"
        tools = folder / "bin"
        tools.mkdir()
        (tools / "activate").write_text("")
        note = f'echo "$(basename "$0") $*" >> {self.calls}'
        srun = 'case "$*" in *hostname*) echo 10.0.0.1 fe80::1;; *) exec sleep 60;; esac'
        stub(tools, "srun", f"{note}\n{srun}")
        stub(tools, "scontrol", f"{note}\n[[ $1 != show ]] || printf 'n1\\nn2\\nn3\\n'")
        # A head answers once it was started, in the background too.
        stub(
            tools, "ray", f"[[ $1 != status ]] || until grep -q -- --head {self.calls}; do :; done"
        )
        # The last step is started in the background, and may be a moment behind.
        stub(tools, "python", f"{note}\nuntil grep -q n2,n3 {self.calls}; do :; done\n{python}")
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder),
            "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-3]",
            "PMLRAY_STORE": str(folder), "PMLRAY_VENV": str(folder),
        }  # fmt: skip

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(CLUSTER / "slurm" / "search.sbatch"), "searches/x.yaml"],
            env={**self.environment, **environment}, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip


def test_the_slurm_script_starts_a_head_workers_and_the_search(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, "exit 7")
    job = slurm.start()
    _, err = job.communicate(timeout=60)
    assert job.returncode == 7, err
    called = slurm.calls.read_text()
    for part in (
        "--nodelist=n1 ray start --head --block --num-cpus=0 --node-ip-address=10.0.0.1",
        "--nodes=2 --ntasks=2 --nodelist=n2,n3 ray start --block --address=10.0.0.1:22345",
        "python -m pmlray search searches/x.yaml --profile cluster/profiles/slurm.yaml"
        " --address 10.0.0.1:22345",
    ):
        assert part in called
    assert "requeue" not in called


def test_a_slurm_job_that_is_told_to_end_ends_its_search_and_queues_again(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    body = f"trap 'echo python left >> {tmp_path}/calls; exit 130' TERM\necho > {ready}"
    slurm = Slurm(tmp_path, f"{body}\nwhile :; do sleep 0.02; done")
    job = slurm.start()
    ready.read_text()
    job.terminate()
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130, err
    assert slurm.calls.read_text().endswith("python left\nscontrol requeue 12345\n")


def test_the_slurm_script_says_what_it_lacks(tmp_path: Path) -> None:
    job = Slurm(tmp_path, "").start(PMLRAY_STORE="")
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0 and "file system that all nodes share" in err


def test_passwords_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    script = tmp_path / "make_env.sh"
    script.write_bytes((CLUSTER / "mlflow" / "make_env.sh").read_bytes())
    made = subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    file = tmp_path / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    values = dict(line.split("=") for line in file.read_text().splitlines())
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values.values())
    assert len(set(values.values())) == len(values)
    assert not any(value in made.stdout for value in values.values())
    compose = (CLUSTER / "mlflow" / "compose.yaml").read_text()
    assert set(values) == set(re.findall(r"\$\{(\w+):\?", compose))
    again = subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "there already" in again.stderr


def test_the_server_starts_with_a_password_and_no_secret_as_an_argument(tmp_path: Path) -> None:
    import configparser

    stub(tmp_path, "mlflow", f'echo "$*" > {tmp_path / "arguments"}')
    secrets = {
        "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:planted%40one@db/mlflow",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "planted-two",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-three",
    }
    environment = {
        **secrets, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path),
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://b/x", "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000",
    }  # fmt: skip
    command = ["sh", str(CLUSTER / "mlflow" / "serve.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text()
    assert "--app-name basic-auth" in arguments and "planted" not in arguments + done.stdout
    settings = configparser.ConfigParser()
    settings.read(tmp_path / "basic_auth.ini")
    assert settings["mlflow"]["database_uri"] == secrets["MLFLOW_BACKEND_STORE_URI"]
    assert settings["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    del environment["MLFLOW_AUTH_ADMIN_PASSWORD"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "MLFLOW_AUTH_ADMIN_PASSWORD" in refused.stderr
