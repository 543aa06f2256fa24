"""A node's packs share one prefix cache: the same bits, never a stale one, within its bound."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmlray.backends.store.file_store import FileStore
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Probe
from pmlray.engine.measure import measure_pack
from pmlray.engine.model import prefix_store
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.prefix_cache import CachedRecord, build_prefix_cache
from pmlray.engine.model.prefix_store import PrefixStore, entry_name
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import Record
from pmlray.types import DesignPoint, Observation, Pack
from tests.unit.engine.conftest import random_record

RECORDS = (random_record(30), random_record(12, 1), random_record(29, 2))


def same_bits(one: Sequence[CachedRecord], other: Sequence[CachedRecord]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.hidden_TD, b.hidden_TD)
        and torch.equal(a.adapter_in_TX, b.adapter_in_TX)
        and torch.equal(a.targets_L, b.targets_L)
        and a.first == b.first
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_what_is_found_is_what_was_built_and_shares_its_memory(
    tiny: Callable[..., BaseModel], tmp_path: Path, placement: str
) -> None:
    base = tiny(placement)
    builder, finder = PrefixStore(tmp_path / "node"), PrefixStore(tmp_path / "node")
    built, found = builder.fetch(base, RECORDS), finder.fetch(base, RECORDS)
    assert same_bits(build_prefix_cache(base, RECORDS), built) and same_bits(built, found)
    assert (builder.count.built, builder.count.found) == (1, 0)
    assert (finder.count.built, finder.count.found) == (0, 1)
    (entry,) = (tmp_path / "node").glob("*.safetensors")
    assert finder.count.bytes == finder.bytes_on_disk() == entry.stat().st_size
    # Mapped from the file, not copied: this process has no memory of its own for it.
    address = found[0].hidden_TD.data_ptr()
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [r[0].split("-") for r in ranges if r[-1] == str(entry)]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in mapped)


def fresh(placement: str = "mlp", layer: int = 1) -> BaseModel:
    """A base of its own, whose weights may be changed."""
    probe = Probe(placement=placement, layer=layer)  # type: ignore[arg-type]
    source = resolve_model(TINY, None)
    return load_base_model(
        TINY, source, None, "float32", (probe.to_placement(),), torch.device("cpu")
    )


def test_the_name_holds_all_that_determines_it(tiny_folder: str) -> None:
    name = entry_name(fresh(), RECORDS)
    assert entry_name(fresh(), RECORDS) == name

    def changed(change: Callable[[torch.nn.Module], torch.Tensor]) -> str:
        base = fresh()
        with torch.no_grad():
            # One value of one weight.
            change(base.model.model).view(-1)[7] += 1e-3
        return entry_name(base, RECORDS)

    others = [
        entry_name(fresh("down_proj"), RECORDS),
        entry_name(fresh("mlp", 2), RECORDS),
        entry_name(fresh(), RECORDS[:2]),
        entry_name(fresh(), RECORDS[::-1]),
        entry_name(fresh(), (replace(RECORDS[0], prompt_ids=(9, *RECORDS[0].prompt_ids[1:])),)),
        # The same ids with the border between prompt and target elsewhere.
        entry_name(fresh(), (Record(RECORDS[0].prompt_ids[:-1], RECORDS[0].target_ids),)),
        changed(lambda body: body.embed_tokens.weight),
        changed(lambda body: body.layers[0].mlp.up_proj.weight),
        changed(lambda body: body.layers[1].self_attn.q_proj.weight),
    ]
    assert len({name, *others}) == len(others) + 1
    half = fresh()
    half.model.to(torch.bfloat16)
    assert entry_name(half, RECORDS) not in {name, *others}
    # What lies above the adapted layer has no part in it.
    assert changed(lambda body: body.layers[2].mlp.up_proj.weight) == name


def test_two_that_build_at_once_end_with_one_file(
    tiny: Callable[..., BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, builds = tiny(), []

    def slowly(base: BaseModel, records: Sequence[Record]) -> tuple[CachedRecord, ...]:
        builds.append(1)
        time.sleep(0.1)
        return build_prefix_cache(base, records)

    monkeypatch.setattr(prefix_store, "build_prefix_cache", slowly)
    results: dict[int, tuple[CachedRecord, ...]] = {}
    ready = threading.Barrier(4)

    def work(i: int) -> None:
        ready.wait(timeout=10)
        results[i] = PrefixStore(tmp_path).fetch(base, RECORDS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(builds) == 1 and len(results) == 4
    assert all(same_bits(results[0], other) for other in results.values())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and not list(tmp_path.glob("*.part"))


def test_the_bound_holds_and_the_least_recently_used_goes(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    base = tiny()
    sets = [(random_record(20, i),) for i in range(3)]
    one = PrefixStore(tmp_path / "one")
    one.fetch(base, sets[0])
    size = one.bytes_on_disk()
    store = PrefixStore(tmp_path / "node", most_bytes=int(2.5 * size))
    paths = [tmp_path / "node" / f"{entry_name(base, own)}.safetensors" for own in sets]
    kept = [store.fetch(base, own) for own in sets[:2]]
    for age, path in ((200, paths[0]), (100, paths[1])):
        os.utime(path, (time.time() - age,) * 2)
    store.fetch(base, sets[0])  # Used again: the other one is now the oldest.
    store.fetch(base, sets[2])
    assert [path.is_file() for path in paths] == [True, False, True]
    assert store.bytes_on_disk() <= int(2.5 * size)
    # Whoever has it mapped keeps it.
    assert same_bits(kept[1], build_prefix_cache(base, sets[1]))
    small = PrefixStore(tmp_path / "small", most_bytes=size // 2)
    assert same_bits(small.fetch(base, sets[0]), kept[0]) and small.bytes_on_disk() == 0


def test_a_damaged_file_is_built_again(tiny: Callable[..., BaseModel], tmp_path: Path) -> None:
    base = tiny()
    good = PrefixStore(tmp_path).fetch(base, RECORDS)
    path = next(tmp_path.glob("*.safetensors"))
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    again = PrefixStore(tmp_path)
    assert same_bits(again.fetch(base, RECORDS), good)
    assert again.count.built == 1 and path.read_bytes() == whole


def test_a_folder_that_others_may_write_to_is_not_used(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    base = tiny()
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    store = PrefixStore(folder)
    assert same_bits(store.fetch(base, RECORDS), build_prefix_cache(base, RECORDS))
    assert store.bytes_on_disk() == 0


def test_runs_are_the_same_bits_whoever_built_the_cache(
    make_search: Callable[..., PreparedSearch], tiny_folder: str, tmp_path: Path
) -> None:
    search = make_search("evaluate.generate_max_tokens=0")

    def measured(name: str, store: PrefixStore | None, *points: DesignPoint) -> list[Observation]:
        files = FileStore(tmp_path / name)
        runs = tuple(search.plan_run(p, "sft", 0, 0, "law") for p in points)
        measure_pack(
            search, Pack(0, runs), files, files.adapters, TorchStepper, {}, prefix_store=store
        )
        return list(files.observations())

    short, long = DesignPoint(2, 16, 10), DesignPoint(4, 128, 4)
    (alone,) = measured("alone", None, short)
    node = tmp_path / "node"
    measured("longer", PrefixStore(node), long)
    (shared,) = measured("shared", PrefixStore(node), short)
    assert shared.provenance["prefix_cache"]["found"] > 0
    assert shared.provenance["prefix_cache"]["built"] < 2
    assert (shared.final_loss, shared.token_p, shared.curve) == (
        alone.final_loss, alone.token_p, alone.curve,
    )  # fmt: skip
