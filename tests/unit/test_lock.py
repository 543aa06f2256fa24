"""requirements.lock: every package by the hashes of its files, those of tests alone last."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.audit import pins

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_TESTS = "# For its tests and checks alone:"


def named(text: str) -> dict[str, str]:
    return {canonicalize_name(name): v for name, v in (pin.split("==") for pin in pins(text))}


def closure(requirements: Iterable[str]) -> set[str]:
    """All packages that requirements lead to, by what is installed here."""
    todo, seen = [Requirement(text) for text in requirements], set[tuple[str, str]]()
    while todo:
        need = todo.pop()
        for extra in ("", *need.extras):
            key = (canonicalize_name(need.name), extra)
            if key in seen or key[0] == "pmlray":
                continue
            seen.add(key)
            try:
                below = [Requirement(text) for text in requires(need.name) or ()]
            except PackageNotFoundError:
                continue  # of an extra that is not installed here
            todo += [n for n in below if n.marker is None or n.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_every_pin_has_hashes() -> None:
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(LOCK)) > 150
    hashed = re.compile(r"--hash=sha256:[0-9a-f]{64}$", re.MULTILINE)
    assert not [entry.split()[0] for entry in entries if not hashed.search(entry)]


def test_what_runs_stands_before_what_only_tests() -> None:
    """The image of a cluster installs the first part alone."""
    runs, tests = LOCK.split(OF_TESTS)
    extras = PROJECT["optional-dependencies"]
    asked = [t for name in ("train", "draw", "notebook", "aws", "gcp") for t in extras[name]]
    # The image has the clouds' clients in a file of its own.
    own = named((ROOT / "cluster" / "requirements.txt").read_text())
    needed = closure([*PROJECT["dependencies"], *asked]) - own.keys()
    # Of PyPI's torch: it pins its CUDA packages itself.
    needed = {n for n in needed if not n.startswith(("nvidia-", "cuda-")) and n != "triton"}
    assert needed <= named(runs).keys()
    assert not needed & named(tests).keys()


def test_pins_lie_in_the_ranges_that_are_declared() -> None:
    lock = named(LOCK)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for need in map(Requirement, texts):
            if (pin := lock.get(canonicalize_name(need.name))) is not None:
                assert need.specifier.contains(pin), need


def test_every_dependency_has_an_upper_end() -> None:
    extras = PROJECT["optional-dependencies"]
    of_users = [*PROJECT["dependencies"], *extras["train"], *extras["draw"], *extras["notebook"]]
    for need in map(Requirement, of_users):
        if need.name != "pmlray":
            assert {s.operator for s in need.specifier} == {">=", "<"}, need


def test_it_is_installed_as_it_is_pinned() -> None:
    """Else the suite says nothing of these versions."""
    lock = named(LOCK)
    for name in ("ray", "optuna", "torch", "transformers", "peft", "deepspeed", "mlflow", "numpy"):
        assert version(name).partition("+")[0] == lock[name]
