"""Every reader of a file that somebody else may have written, as a target for fuzzers.

A target takes bytes and a folder of its own. It returns, whatever the bytes are, or raises the
documented error: all else is a defect. `scripts/fuzz.py` guides bytes by coverage, tests draw some.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from pmlray.backends.mlflow.journal import MirrorJournal, entry_name
from pmlray.backends.mlflow.spooled_tracker import Replay
from pmlray.backends.store.attempts import Attempt, AttemptLog
from pmlray.backends.store.file_leases import LeaseFolder
from pmlray.backends.store.file_store import FileStore
from pmlray.backends.store.lease_rules import Holder
from pmlray.config.adapters.start_adapter import read_start
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_search, load_spec
from pmlray.config.prepared_search import prepare_comparison, prepare_search
from pmlray.config.search_spec import Model, SearchSpec
from pmlray.config.stored_files import Card, Summary, read_stored
from pmlray.engine.adapters.peft_io import MLP_CONFIG_FILE, WEIGHTS_FILE
from pmlray.engine.adapters.stored_adapter import PEFT_CONFIG_FILE, read_adapter
from pmlray.engine.runtime.checkpoints import Checkpoints, file_name
from pmlray.errors import PmlrayError
from pmlray.law.read import read_law_data
from pmlray.live_packs import Calibration, LivePack, LiveRun, live_packs
from pmlray.memory import read_records
from pmlray.study.search.replay_table import read_table
from pmlray.types import DesignPoint, FailedRun, Pack, PackTimes, PlannedRun
from tests.fakes import observe
from tests.nasty_bytes import NASTY_JSON, NASTY_YAML
from tests.unit.conftest import SEARCH

ROOT = Path(__file__).parents[1]
RUN = PlannedRun(DesignPoint(2, 16, 100), "sft", 0, 0, "law", "0123456789abcdef")
OBSERVATION = observe(RUN, 0, 0, 0.02, 1e-3)
MLP_CONFIG = {"base_model": "tiny-random-llama", "placement": "mlp", "layer": 1, "lora_rank": 2}
PEFT_CONFIG = {
    "peft_type": "LORA", "base_model_name_or_path": "tiny-random-llama", "r": 2, "lora_alpha": 2,
    "layers_to_transform": [1], "target_modules": ["down_proj"],
}  # fmt: skip
HOLDER = Holder("node-1", "boot pid:1", 10, "100")
FACTS = {"facts": {"machine": "one", "versions": {"ray": "2"}, "wall_seconds": 1.5,
                   "training_share": None}}  # fmt: skip
CARD = {"base_model": {"id": "a", "revision": None, "identity": "b", "dtype": "float32"},
        "prompt_format": "chat"}  # fmt: skip
LIVE = (
    LivePack("pack-0", "training", 1.0, 1, runs=(LiveRun(RUN.run_key, 1, 2, 3.0),)),
    Calibration(((RUN.point, 3),), 1.0, 2.0),
)
AT = "base_model.model.model.layers.1.mlp.down_proj"
Target = Callable[[bytes, Path], None]


def _search(content: bytes, folder: Path) -> None:
    prepare_search(_file(folder, "search.yaml", content))


def _comparison(content: bytes, folder: Path) -> None:
    prepare_comparison(_file(folder, "comparison.yaml", content))


def _profile(content: bytes, folder: Path) -> None:
    load_spec(ClusterProfile, _file(folder, "profile.yaml", content))


def _override(content: bytes, folder: Path) -> None:
    path = _file(folder, "search.yaml", SEARCH.encode())
    load_search(path, [content.decode("utf-8", "surrogateescape")])


def _records(content: bytes, folder: Path) -> None:
    read_records(_file(folder, "records.jsonl", content))


def _law_csv(content: bytes, folder: Path) -> None:
    read_law_data(_file(folder, "points.csv", content))


def _law_jsonl(content: bytes, folder: Path) -> None:
    read_law_data(_file(folder, "points.jsonl", content))


def _table(content: bytes, folder: Path) -> None:
    read_table(_file(folder, "table.csv", content))


def _store(content: bytes, folder: Path) -> None:
    store, key = FileStore(folder), RUN.run_key
    pack_id = Pack(0, (RUN,)).pack_id
    for part, name, read in (
        ("observations", key, lambda: (store.observations(), store.observation(key))),
        ("failures", f"{key}-0", lambda: (store.failures(), store.failures_of(key))),
        ("plans", pack_id, lambda: (store.plans(), store.unfinished())),
        ("packs", pack_id, store.times),
        ("live", pack_id, lambda: live_packs(folder)),
        (".", "calibration", store.calibration),
    ):
        (folder / part).mkdir(exist_ok=True)
        path = _file(folder / part, f"{name}.json", content)
        # Each reader is tried, whatever the one before it says.
        with suppress(PmlrayError):
            read()
        path.unlink()


class _Mirror:
    """A mirror that takes whatever it is told."""

    identity, page = "any", "any"

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def _journal(content: bytes, folder: Path) -> None:
    store, journal = FileStore(folder), MirrorJournal(folder)
    _file(folder / "mirror", entry_name(1), content)
    (folder / "mirror" / "sent.json").unlink(missing_ok=True)
    with suppress(PmlrayError):
        journal.run_keys()
    Replay(store, journal, "memory:", _Mirror).send()  # type: ignore[arg-type]


def _sent(content: bytes, folder: Path) -> None:
    journal = MirrorJournal(folder)
    _file(folder / "mirror", "sent.json", content)
    journal.waiting("memory:")
    journal.mark_sent("memory:", "any", 1)


def _kept(content: bytes, folder: Path) -> None:
    path = _file(folder, "kept.json", content)
    for kind in (SearchSpec, CompareSpec, Summary, Card):
        with suppress(PmlrayError):
            read_stored(kind, path)


def _lease(content: bytes, folder: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    for old in (folder / "run").iterdir():
        old.unlink()
    _file(folder / "run", "1", content)
    leases = LeaseFolder(folder)
    leases.is_free("run")
    leases.take("run")


def _attempt(content: bytes, folder: Path) -> None:
    _file(folder, "attempt-0000.json", content)
    AttemptLog(folder).all()


def _adapter(content: bytes, folder: Path) -> None:
    (folder / PEFT_CONFIG_FILE).unlink(missing_ok=True)
    _file(folder, WEIGHTS_FILE, content)
    _file(folder, MLP_CONFIG_FILE, json.dumps(MLP_CONFIG).encode())
    _read_adapter(folder)
    (folder / MLP_CONFIG_FILE).unlink()
    _file(folder, PEFT_CONFIG_FILE, json.dumps(PEFT_CONFIG).encode())
    _read_adapter(folder)


def _adapter_config(content: bytes, folder: Path) -> None:
    (folder / PEFT_CONFIG_FILE).unlink(missing_ok=True)
    _file(folder, WEIGHTS_FILE, _weights())
    _file(folder, MLP_CONFIG_FILE, content)
    _read_adapter(folder)
    (folder / MLP_CONFIG_FILE).unlink()
    _file(folder, PEFT_CONFIG_FILE, content)
    _read_adapter(folder)


def _read_adapter(folder: Path) -> None:
    with suppress(PmlrayError):
        read_adapter(folder)
    with suppress(PmlrayError):
        read_start(folder, Model(id=TINY), resolve_model(TINY, None))


def _checkpoint(content: bytes, folder: Path) -> None:
    checkpoints = Checkpoints(folder, (RUN,), 60.0, lambda: False)
    path = _file(folder, file_name(5, content), content)
    # None of these is of this pack's identity, so that nothing is put back.
    checkpoints.resume(None)  # type: ignore[arg-type]
    assert not path.exists()


def _model_config(content: bytes, folder: Path) -> None:
    _file(folder, "config.json", content)
    resolve_model(str(folder), None)


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _shipped(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(ROOT.glob(pattern))]


@cache
def _weights() -> bytes:
    a, b = torch.ones(4, 2), torch.ones(2, 4)
    tensors = {"A": a, "B": b, f"{AT}.lora_A.weight": a.T.contiguous(),
               f"{AT}.lora_B.weight": b.T.contiguous()}  # fmt: skip
    return save(tensors, {"identity": "x", "step": "5", "facts": "{}"})


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _specs() -> list[bytes]:
    """A search and a comparison as their stores keep them."""
    search = load_spec(SearchSpec, ROOT / "searches" / "smoke.yaml")
    comparison = load_spec(CompareSpec, ROOT / "searches" / "comparisons" / "smoke.yaml")
    return [search.model_dump_json().encode(), comparison.model_dump_json().encode()]


TARGETS: Mapping[str, Target] = {
    "search": _search,
    "comparison": _comparison,
    "profile": _profile,
    "override": _override,
    "records": _records,
    "law_csv": _law_csv,
    "law_jsonl": _law_jsonl,
    "table": _table,
    "store": _store,
    "journal": _journal,
    "sent": _sent,
    "kept": _kept,
    "lease": _lease,
    "attempt": _attempt,
    "adapter": _adapter,
    "adapter_config": _adapter_config,
    "checkpoint": _checkpoint,
    "model_config": _model_config,
}


def seeds(name: str) -> list[bytes]:
    """Inputs from which a fuzzer of this target begins: good ones, and such as broke readers."""
    stored = OBSERVATION.to_json()
    failure = asdict(FailedRun(RUN.run_key, RUN.point, 0, 0, "made up", 1.0))
    pack = Pack(0, (RUN,))
    times = asdict(PackTimes(pack.pack_id, 0, 1.0, 2.0))
    (table,) = _shipped("searches/tables/smollm2_phonebook.csv")
    adapters = [_weights(), _weights()[:60], b"\x80\x04\x95.", (2**63).to_bytes(8, "little")]
    good: dict[str, list[bytes]] = {
        "search": [SEARCH.encode(), *_shipped("searches/smoke.yaml"), *NASTY_YAML],
        "comparison": [*_shipped("searches/comparisons/smoke.yaml"), *NASTY_YAML],
        "profile": [*_shipped("cluster/profiles/*.yaml"), *NASTY_YAML],
        "override": [b"seeds=[1]", b"a" + b".a" * 2_000 + b"=1", b"=", b"a.b=[",
                     *(b"seeds=" + value.removeprefix(b"a: ") for value in NASTY_YAML)],
        "records": [b'{"query": "q", "target": "t"}\n', *NASTY_JSON],
        "law_csv": [b"rank,length,delta_loss_nats,steps\n1,16,2.5,100\n", b'a,"' + b"x" * 200_000,
                    *_shipped("tests/golden/*.csv")],
        "law_jsonl": [*_json(stored), *NASTY_JSON],
        "table": [b"\n".join(table.split(b"\n")[:12])],
        "store": [*_json(stored, failure, asdict(pack), times, *map(asdict, LIVE)), *NASTY_JSON],
        "journal": [*_json(
            {"kind": "start"}, {"kind": "observe", "run_keys": ["a"]},
            {"kind": "law", "metrics": {"a": 1.0}, "gpu_seconds": 1.0, "time_ms": 1},
            {"kind": "progress", "metrics": {"a": 1.0}, "gpu_seconds": 1.0, "time_ms": 1},
            {"kind": "finish", "artifacts": ["report/report.html"], "status": "FINISHED"},
            {"kind": "observe", "run_keys": 1}, {"kind": "finish", "artifacts": [1]},
            {"kind": "law"}, {"kind": ["start"]},
            {"kind": "live", "time_ms": 1, "runs": [
                {"name": "a", "tags": {}, "run_key": "a", "steps": 1, "loss": 1.0}]}), *NASTY_JSON],
        "sent": [*_json({"0" * 16: ["any", 1]}, {"0" * 16: 1}, {"0" * 16: ["any", "1"]}),
                 *NASTY_JSON],
        "kept": [*_json(FACTS, CARD), *_specs(), *NASTY_JSON],
        "lease": [*_json(asdict(HOLDER), {**asdict(HOLDER), "pid": "../../1"}, {"host": 1}),
                  *NASTY_JSON],
        "attempt": [*_json(asdict(Attempt(1)), {"step": "1"}, {"steps": 1}), *NASTY_JSON],
        "adapter": adapters,
        "adapter_config": [*_json(MLP_CONFIG, PEFT_CONFIG), *NASTY_JSON],
        "checkpoint": adapters,
        "model_config": [*_json({
            "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 4,
            "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 5,
            "max_position_embeddings": 16}), *NASTY_JSON],
    }  # fmt: skip
    return good[name]
