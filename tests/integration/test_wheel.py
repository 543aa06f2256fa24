"""A wheel, installed outside of any clone: what commands and messages name is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pmlray.version import SHIPPED
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow

# Files of the project that texts name, by their folder in it.
NAMED = re.compile(rf"\b(?:{'|'.join(SHIPPED)})/[\w./-]*\w")


def tracked(*places: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *places], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if (ROOT / name).is_file()]


@dataclass(frozen=True)
class Installed:
    """An environment of its own with pmlray's wheel, and a folder that is no clone."""

    wheel: Path
    python: Path
    home: Path

    def run(self, *arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [self.python, "-m", "pmlray", *arguments],
            cwd=self.home,
            env={**environment, "COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built from what git keeps; the packages that it needs are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in tracked("pmlray", *SHIPPED, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    # What a clone may hold and a wheel must not.
    (source / "cluster" / "mlflow" / ".env").write_text("MLFLOW_PASSWORD=x")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=200)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=100)
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
    (Path(own) / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "home").mkdir()
    return Installed(wheel, python, folder / "home")


def test_it_holds_the_searches_the_profiles_and_the_key_reference(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name.partition(".data/data/share/pmlray/")[2] for name in archive.namelist()}
    assert set(tracked(*SHIPPED)) == names - {""}
    assert "searches/README.md" in names and "cluster/profiles/cpu.yaml" in names


def test_commands_find_shipped_files_by_their_names(installed: Installed) -> None:
    assert "smoke-310956a6" in installed.run("validate", "searches/smoke.yaml")
    profile = ("--profile", "cluster/profiles/one_gpu.yaml")
    assert "first pack:" in installed.run("plan", "searches/smoke.yaml")
    compared = installed.run("compare", "searches/comparisons/smoke.yaml", "--dry-run")
    assert "compared_runs: 12" in compared
    assert "324 points" in installed.run("fit", "searches/tables/smollm2_phonebook.csv")
    sent = ("submit", "searches/smoke.yaml", "--address", "http://127.0.0.1:8265", "--dry-run")
    assert "would go to" in installed.run(*sent, *profile)
    own = installed.home / "searches" / "smoke.yaml"
    own.parent.mkdir()
    own.write_text((ROOT / "searches/smoke.yaml").read_text().replace("name: smoke", "name: own"))
    assert "own-" in installed.run("validate", "searches/smoke.yaml")
    shutil.rmtree(own.parent)


def test_a_new_search_names_a_key_reference_that_is_there(installed: Installed) -> None:
    written = ("init", "mine.yaml", "--task", "phonebook", "--model", "tiny-random-llama")
    installed.run(*written, "--gpu-hours", "0.1")
    (named,) = re.findall(r"explained in (\S+);", (installed.home / "mine.yaml").read_text())
    assert (installed.home / named).read_text() == (ROOT / "searches/README.md").read_text()


def test_help_names_files_that_are_there(installed: Installed) -> None:
    named = set(re.findall(r"/\S+\.yaml", installed.run("search", "--help")))
    assert {Path(name).name for name in named} == {"smoke.yaml", "cpu.yaml"}
    assert all(Path(name).is_file() for name in named)


def test_every_file_that_a_text_of_the_package_names_is_shipped() -> None:
    texts = [(ROOT / name).read_text() for name in tracked("pmlray/*.py", "pmlray/*.j2")]
    named = {found for text in texts for found in NAMED.findall(text)}
    known = set(tracked(*SHIPPED))
    folders = {str(parent) for name in known for parent in Path(name).parents}
    assert {"searches/README.md", "cluster/README.md"} <= named <= known | folders
