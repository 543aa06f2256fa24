"""Hub models by the real client and a hub on this machine: commits, headers, and no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

from pmlray.api.comparison import Comparison
from pmlray.api.search import Search
from pmlray.api.sizing.plan import SizeRequest, prepare_size
from pmlray.api.stores import claim_comparison, claim_search, open_store
from pmlray.config import ClusterProfile
from pmlray.config.adapters.model_card import loading
from pmlray.config.bases import hub as hub_models
from pmlray.config.bases.chat_template import has_chat_template
from pmlray.config.bases.models import KNOWN_MODELS, TINY, pulled_folder, resolve_model
from pmlray.config.prepared_search import (
    PreparedSearch,
    prepare_comparison,
    prepare_search,
    prepare_spec,
)
from pmlray.errors import ModelError, StoreError
from pmlray.memory import RecordSource
from pmlray.study.sizing.request import Wanted
from tests.hub import COMMIT, Hub, serving
from tests.unit.config.bases.test_checks import WRONG, edit_json, shard

ID = "someone/tiny"
NOBODY = "http://127.0.0.1:9"


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    shutil.copytree(pulled_folder(TINY), tmp_path / "base")
    hub_models._checked.cache_clear()
    with serving(Hub(tmp_path / "base")) as found:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        at(found.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield found


@pytest.fixture
def away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub: nobody listens at its address."""
    at(NOBODY, monkeypatch)


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT, None])
def test_a_branch_becomes_its_commit_and_no_weights_are_downloaded(revision: str, hub: Hub) -> None:
    source = resolve_model(ID, revision)
    assert source.revision == COMMIT and source.identity == f"{ID}@{COMMIT}"
    assert source.geometry == KNOWN_MODELS[TINY] and source.folder is None
    kept = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*")}
    assert kept == {"config.json", "tokenizer.json"}


def test_the_commit_is_what_is_kept(
    hub: Hub, make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    named, pinned = (make_search(f"model.id={ID}", f"model.revision={r}") for r in ("main", COMMIT))
    assert named.spec.model.revision == COMMIT
    assert named.spec.search_id == pinned.spec.search_id
    (tmp_path / "store").mkdir()
    claim_search(tmp_path / "store", named.settled(False).spec)
    assert open_store(tmp_path / "store")[0].model.revision == COMMIT
    hub.refs["main"] = "f" * 40
    with pytest.raises(ModelError, match="f" * 40):
        make_search(f"model.id={ID}", "model.revision=main")


MOVED = "f" * 40


def test_a_hub_id_alone_stays_at_the_commit_that_its_store_began_with(
    hub: Hub, search_file: Path, tmp_path: Path
) -> None:
    """What the hub's branch has become meanwhile is for new stores."""
    search_file.write_text(search_file.read_text().replace(TINY, ID))
    began = Search.load(search_file, store=tmp_path / "store")
    assert began.spec.model.revision == COMMIT and began.prepared.source.revision == COMMIT
    pinned = prepare_search(search_file, [f"model.revision={COMMIT}"]).spec
    assert pinned.search_id != began.search_id, "the id says whether a commit was asked for"
    (tmp_path / "store").mkdir()
    claim_search(tmp_path / "store", began.spec)
    hub.moved(MOVED)
    asked = len(hub.asked)
    again = Search.load(search_file, store=tmp_path / "store")
    assert again.spec == began.spec and again.prepared.source == began.prepared.source
    assert hub.asked[asked:] == []
    # As a cluster gets it, from a laptop that looked the branch up anew.
    sent = prepare_search(search_file).spec
    assert (sent.search_id, sent.model.revision) == (began.search_id, MOVED)
    with pytest.raises(StoreError, match=f"was begun with {ID} at {COMMIT}"):
        claim_search(tmp_path / "store", sent)
    assert Search.load(sent, store=tmp_path / "store").spec == began.spec
    # And what reads the store alone.
    assert prepare_spec(open_store(tmp_path / "store")[0], tmp_path).source.revision == COMMIT


def test_a_comparison_and_a_sizing_go_on_at_the_commit_that_they_began_with(
    hub: Hub, tmp_path: Path
) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(COMPARISON.replace(", revision: main", ""))
    began = Comparison.load(file, store=tmp_path / "store")
    (tmp_path / "store").mkdir()
    claim_comparison(tmp_path / "store", began.spec)
    (tmp_path / "r.jsonl").write_text('{"query": "a", "target": " bcd"}\n')
    asked = sizing(tmp_path, None)
    plan = prepare_size(asked)
    (plan.out / "law").mkdir(parents=True)
    claim_search(plan.out / "law", plan.search.spec)
    hub.moved(MOVED)
    again = Comparison.load(file, store=tmp_path / "store")
    assert again.spec == began.spec and again.prepared.source.revision == COMMIT
    assert prepare_size(asked).search.spec == plan.search.spec
    elsewhere = prepare_size(replace(asked, out=tmp_path / "new"))
    assert elsewhere.search.spec.model.revision == MOVED


def test_without_the_hub_an_id_alone_is_refused_unless_its_store_knows_the_commit(
    hub: Hub, search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_file.write_text(search_file.read_text().replace(TINY, ID))
    began = Search.load(search_file, store=tmp_path / "store")
    (tmp_path / "store").mkdir()
    claim_search(tmp_path / "store", began.spec)
    at(NOBODY, monkeypatch)
    with pytest.raises(ModelError, match=r"revision of someone/tiny is not given.*as revision"):
        Search.load(search_file, store=tmp_path / "new")
    hub_models._checked.cache_clear()
    assert Search.load(search_file, store=tmp_path / "store").spec == began.spec


COMPARISON = (
    "name: c\n"
    "task: {kind: phonebook, prompt_format: plain}\n"
    f"model: {{id: {ID}, revision: main, dtype: float32}}\n"
    "probe: {placement: down_proj, layer: 1}\n"
    "points: [{lora_rank: 4, seq_len: 64, train_steps: 50}]\n"
    "tuning: {learning_rates: [1.0e-3]}\n"
)


def sizing(folder: Path, revision: str | None) -> SizeRequest:
    return SizeRequest(
        RecordSource(folder / "r.jsonl"), ID, revision, "float32", Wanted(0.99, 0.9), None,
        folder / "out", "down_proj", 1, "plain", 10, 4, ClusterProfile(),
    )  # fmt: skip


def test_a_comparison_and_a_sizing_keep_the_commit(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(COMPARISON)
    spec, search = prepare_comparison(file)
    assert spec.model.revision == search.spec.model.revision == COMMIT
    (tmp_path / "r.jsonl").write_text('{"query": "a", "target": " bcd"}\n')
    plan = prepare_size(sizing(tmp_path, "main"))
    (option,) = plan.options
    training = option.training
    assert training.spec.model.revision == COMMIT == plan.search.spec.model.revision
    code = loading(training.spec, training.source.geometry, training.placement, 4, None)
    assert f'revision="{COMMIT}"' in code


@pytest.mark.parametrize(
    "kind",
    ["no head", "a layer more", "another shape", "bitsandbytes", "pickles", "gguf", "no weights",
     "an adapter", "an added token", "no config", "no tokenizer", "a tensor in two shards",
     "a shard elsewhere", "no header", "whole numbers"],
)  # fmt: skip
def test_a_wrong_base_is_refused_without_its_weights(kind: str, hub: Hub) -> None:
    WRONG[kind][0](hub.folder)
    with pytest.raises(ModelError, match=rf"{ID}@{COMMIT}|/{COMMIT}/"):
        resolve_model(ID, "main")


def test_shards_are_all_looked_at(hub: Hub) -> None:
    shard(hub.folder)
    assert resolve_model(ID, "main").revision == COMMIT
    hub_models._checked.cache_clear()
    (hub.folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"does not have \(model-00002-of-00003\.safetensors\)"):
        resolve_model(ID, "main")


@pytest.mark.parametrize(("model_id", "revision"), [("someone/else", "main"), (ID, "v2.0")])
def test_what_the_hub_does_not_have_is_refused(model_id: str, revision: str, hub: Hub) -> None:
    with pytest.raises(ModelError, match=f"the hub has no model {model_id} at {revision}"):
        resolve_model(model_id, revision)


def test_without_the_hub_a_branch_is_refused(away: None) -> None:
    with pytest.raises(ModelError, match=r"'main' of someone/tiny is not the hash .*refused"):
        resolve_model(ID, "main")


def test_without_the_hub_a_commit_needs_a_known_or_cached_model(
    away: None, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="the hub could not be asked"):
        resolve_model(ID, COMMIT)
    known = resolve_model("Qwen/Qwen3-8B", COMMIT)
    assert known.geometry == KNOWN_MODELS["Qwen/Qwen3-8B"] and known.revision == COMMIT
    at(hub.url, monkeypatch)
    resolve_model(ID, COMMIT)
    hub_models._checked.cache_clear()
    at(NOBODY, monkeypatch)
    assert resolve_model(ID, COMMIT).geometry == KNOWN_MODELS[TINY]


def test_a_gated_model_is_refused_unless_its_sizes_are_known(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    with pytest.raises(ModelError, match="gated"):
        resolve_model(ID, "main")
    monkeypatch.setattr("pmlray.config.bases.models.KNOWN_MODELS", {ID: KNOWN_MODELS[TINY]})
    assert resolve_model(ID, "main").revision == COMMIT


def test_a_model_in_the_cache_is_checked_without_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(snapshot_download(ID, revision=COMMIT))
    at(NOBODY, monkeypatch)
    assert resolve_model(ID, COMMIT).geometry == KNOWN_MODELS[TINY]
    config: Any = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match="no place for"):
        resolve_model(ID, COMMIT)


@pytest.mark.parametrize("has", [True, False])
def test_the_hub_tells_whether_a_base_has_a_chat_template(
    has: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has:
        (hub.folder / "chat_template.jinja").write_text("{{ messages }}")
    source = resolve_model(ID, COMMIT)
    assert has_chat_template(ID, source) is has
    assert not any(path.endswith(".safetensors") for path in hub.asked[-2:])
    # A model that is in the cache as a whole needs no hub for that.
    snapshot_download(ID, revision=COMMIT)
    at(NOBODY, monkeypatch)
    assert has_chat_template(ID, source) is has
