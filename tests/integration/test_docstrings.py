"""Every public docstring has an example, and those that need no training print what they say."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmlray
from pmlray import Comparison, LawSummary, Search, SearchResult
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.types import Observation, Pack, PlannedRun
from tests.fakes import SyntheticRunner
from tests.integration.conftest import ROOT

NAMES = [name for name in pmlray.__all__ if name != "__version__"]
# What is called by a user, beside the names themselves.
CALLED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Search, ("load", "plan", "run", "observations", "result", "to_frame", "law", "report")),
    (Comparison, ("load", "plan", "run")),
    (LawSummary, ("predict",)),
    (SearchResult, ("forecast",)),
)
# What an example says that needs Ray, or torch and an adapter.
TRAINS = ("on Ray", "by torch")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented() -> Iterator[tuple[str, Any]]:
    yield "pmlray", pmlray
    yield from ((name, getattr(pmlray, name)) for name in NAMES)
    for owner, methods in CALLED:
        yield from ((f"{owner.__name__}.{name}", getattr(owner, name)) for name in methods)


DOCUMENTED = dict(documented())


class HalfRecalled(SyntheticRunner):
    """Of whose runs tokens are wrong, the more the higher their loss: with recall to forecast."""

    def _observe(self, run: PlannedRun, round_: int, place: int) -> Observation:
        found = super()._observe(run, round_, place)
        n = len(found.token_p)
        n_right = round(n * (1.0 - min(1.0, found.final_loss / found.base_loss)))
        p = (0.9,) * n_right + (0.1,) * (n - n_right)
        return replace(found, token_p=p, wrong_tokens=tuple(range(n_right, n)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone in which the smoke search was run."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "searches").symlink_to(ROOT / "searches")
    prepared = prepare_search(ROOT / "searches" / "smoke.yaml")
    store = FileStore(folder / "runs" / "smoke")
    (store.folder / SEARCH_FILE).write_text(prepared.spec.model_dump_json())
    HalfRecalled(store).run(Pack(0, runs_of(prepared)))
    return folder


def runs_of(search: PreparedSearch) -> Any:
    """All of a search's law runs, and a pair of its MemFT phase."""
    points = search.spec.space.points()
    law = [search.plan_run(point, "sft", 0, 0, "law") for point in points]
    memft = [search.plan_run(points[-1], m, 0, 1, "memft") for m in ("sft", "memft_ot")]
    return tuple(replace(run, learning_rate=None) for run in (*law, *memft))


def test_the_methods_that_are_looked_at_are_all_there_are() -> None:
    own = {name for name, value in vars(Search).items() if not name.startswith("_")
           and (inspect.isfunction(value) or isinstance(value, classmethod))}  # fmt: skip
    assert own == set(dict(CALLED)[Search])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_its_example_prints_what_it_says(
    name: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = DOCUMENTED[name]
    text = inspect.cleandoc(what.__doc__ or "")
    examples = doctest.DocTestParser().get_doctest(
        text, {n: getattr(pmlray, n) for n in NAMES}, name, None, 0
    )
    assert examples.examples, f"{name} has no example"
    if any(word in text for word in TRAINS):
        for example in examples.examples:
            compile(example.source, name, "single")
        return
    monkeypatch.chdir(clone)
    printed: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(examples, out=printed.append)
    assert not failed, "".join(printed)
