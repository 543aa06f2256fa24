"""Files that somebody else has written: no reader crashes, and none leads out of its folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.spooled_tracker import Replay
from pmlray.backends.store.file_store import FileStore
from pmlray.config.bases.models import resolve_model
from pmlray.config.prepared_search import prepare_search
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.stored_adapter import read_adapter
from pmlray.engine.model.base_model import load_base_model
from pmlray.engine.model.pull import pull_model
from pmlray.errors import ModelError, SpecError, StoreError
from pmlray.types import Pack
from tests.fuzz_targets import OBSERVATION, PEFT_CONFIG, RUN


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("key", ["text", "records"])
@pytest.mark.parametrize("name", ["../secret", "link", "ABSOLUTE", "sub/../../secret", "nul\\0"])
def test_a_search_reads_no_file_outside_its_folder(search_file: Path, key: str, name: str) -> None:
    # Whether or not the task uses it: what a search names is sent along to a cluster.
    secret = search_file.parent.parent / "secret"
    secret.write_text('{"query": "q", "target": "t"}\n')
    os.symlink(secret, search_file.parent / "link")
    name = str(secret) if name == "ABSOLUTE" else name
    with pytest.raises(SpecError, match=rf"task\.{key}.*(leads out|names no file)"):
        prepare_search(search_file, [f'task.{key}="{name}"'])


@pytest.mark.parametrize("run_key", ["../../x", "", ".", "a/b", "x\n", "é"])
def test_a_stored_name_is_no_path(run_key: str, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put(OBSERVATION)
    store.put_plan(Pack(0, (RUN,)))
    for read in (store.observations, store.plans):
        (path,) = (tmp_path / read.__name__).iterdir()
        path.write_text(path.read_text().replace(RUN.run_key, run_key.replace("\n", "\\n")))
        with pytest.raises(StoreError, match="run_key"):
            read()


def test_a_store_follows_no_link(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.put(OBSERVATION)
    (path,) = (store.folder / "observations").iterdir()
    os.symlink(shutil.move(path, tmp_path / "elsewhere.json"), path)
    with pytest.raises(StoreError, match="cannot be read"):
        store.observations()


def test_an_observation_under_another_name_is_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put(OBSERVATION)
    path = tmp_path / "observations" / f"{OBSERVATION.run_key}.json"
    path.rename(path.with_name("f" * 16 + ".json"))
    with pytest.raises(StoreError, match="not what its name tells"):
        store.observations()


def test_a_mirror_is_shown_no_file_outside_the_store(tmp_path: Path) -> None:
    class Shown:
        identity, page = "shown", "shown"

        def finish(self, artifacts: list[Path], status: str) -> None:
            self.artifacts = artifacts

    store = FileStore(tmp_path / "store")
    (tmp_path / "secret").write_text("")
    (store.folder / "page").write_text("")
    os.symlink(tmp_path / "secret", store.folder / "link")
    journal, mirror = MirrorJournal(store.folder), Shown()
    names = ["../secret", str(tmp_path / "secret"), "link", "page"]
    journal.add("finish", artifacts=names, status="FINISHED")
    Replay(store, journal, "memory:", lambda: mirror).send()  # type: ignore[arg-type]
    assert mirror.artifacts == [store.folder / "page"]


class Planted:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_pickled_adapter_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT_CONFIG))
    (tmp_path / name).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(ModelError, match=r"cannot be read|is a pickle"):
        read_adapter(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_of_pickles_or_with_code_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, folder = pull_model("tiny-random-llama"), tmp_path / "model"
    shutil.copytree(tiny, folder)
    source = resolve_model(str(folder), None)

    def load() -> None:
        load_base_model(
            str(folder),
            source,
            None,
            "float32",
            (Probe(layer=1).to_placement(),),
            torch.device("cpu"),
        )

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(ModelError, match="can run code of strangers"):
        load()
    # Nor by transformers, where its headers could not be read.
    monkeypatch.setattr("pmlray.engine.model.checkpoint.check_folder", lambda folder: None)
    with pytest.raises(ModelError, match="cannot load"):
        load()
    config = json.loads((folder / "config.json").read_text())
    code = {"model_type": "planted", "auto_map": {"AutoConfig": "own.Own",
            "AutoModelForCausalLM": "own.Own"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelError, match="cannot load"):
        load()
    assert not (tmp_path / "ran").exists()
