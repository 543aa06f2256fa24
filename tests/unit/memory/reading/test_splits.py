"""Splits of data sets, as the real `datasets` library loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmlray.api.records.source import record_source
from pmlray.errors import DataError, SpecError
from pmlray.memory import read_rows
from pmlray.memory.reading import splits

TRAIN = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(5)]
TEST = [{"question": "t", "answer": "u"}]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    found = pytest.importorskip("datasets", reason="is in the train extra")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield found


def read(records: Path | str, split: str) -> list[tuple[Any, str]]:
    return [(row.query, row.target) for row in read_rows(record_source(records, None, split))]


def pairs(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in rows]


def test_a_folder_of_data_files_has_the_splits_that_the_hub_shows(
    library: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    for name, rows in (("train", TRAIN), ("test", TEST)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "repo", "train") == pairs(TRAIN)
    assert read(tmp_path / "repo", "train[:2]") == pairs(TRAIN[:2])
    assert read(str(tmp_path / "repo"), "test") == pairs(TEST)
    with pytest.raises(DataError, match=r"repo, split dev: datasets cannot load it .*train.*test"):
        read(tmp_path / "repo", "dev")
    with pytest.raises(DataError, match="nowhere, split train: datasets cannot load it"):
        read(tmp_path / "nowhere", "train")


def test_a_saved_dict_gives_the_split_asked_for(library: Any, tmp_path: Path) -> None:
    whole = {"train": TRAIN, "test": TEST}
    saved = library.DatasetDict({k: library.Dataset.from_list(v) for k, v in whole.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", "train") == pairs(TRAIN)
    assert read(tmp_path / "saved", "test") == pairs(TEST)
    with pytest.raises(DataError, match="holds the splits train, test"):
        read(tmp_path / "saved", "dev")


def test_without_a_network_a_hub_id_is_refused_with_the_cure(library: Any) -> None:
    with pytest.raises(DataError, match=r"the hub cannot be reached .*save it as a file"):
        read("nobody/nothing", "train")


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(splits, "import_module", missing)
    with pytest.raises(DataError, match="run: pip install datasets"):
        read("org/name", "train")
    with pytest.raises(SpecError, match="split is train, but records are rows"):
        record_source(TRAIN, None, "train")
