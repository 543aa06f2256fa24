"""Bases of many families: the engine, PEFT and plain decoding say the same of an adapter."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from pmlray.backends.store.file_store import FileStore
from pmlray.config.adapters.placement import MLP_BLOCK, Placement
from pmlray.config.bases.checks import check_config, check_tensors
from pmlray.config.bases.geometry import geometry_from_config
from pmlray.config.bases.own_model import find_layers
from pmlray.config.bases.safetensors_header import read_json, read_tensors
from pmlray.config.prepared_search import prepare_search
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.peft_io import PeftNames, save_adapter
from pmlray.engine.adapters.stored_adapter import read_adapter
from pmlray.engine.evaluation.greedy_decode import decode_records
from pmlray.engine.evaluation.scores import Decoding, decode_exactly, score_tokens
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import BaseModel, freeze_base
from pmlray.engine.model.batches import Row, micro_batches
from pmlray.engine.model.general_base import GeneralBase
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.model.prefix_store import PrefixStore
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import Record
from pmlray.types import Pack
from tests.families import FAST, GENERAL, VOCAB, tiny_model

CASES = [*FAST, *GENERAL]
PROMPT, RANKS = 5, (2, 3)


def drawn(length: int, seed: int) -> Record:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (PROMPT + length,), generator=generator).tolist()
    return Record(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]))


def fill(lora: PackedLora) -> None:
    """Give every B random values; what is past an adapter's rank stays 0."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, values in lora.named_parameters():
            if name.endswith("B"):
                for n, rank in enumerate(lora.ranks):
                    values[n, :, :rank].normal_(0, 0.1)


def peft_nll(model: Any, record: Record) -> Tensor:
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    logits = model(input_ids=ids).logits[0, PROMPT - 1 : -1]
    return cross_entropy(logits, ids[0, PROMPT:], reduction="none")


def greedy(model: Any, prompt: Sequence[int], n: int) -> tuple[int, ...]:
    """The model's own generation, which nothing ends early."""
    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n,
        min_new_tokens=n, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return tuple(found[0, len(prompt) :].tolist())


def losses_of(base: BaseModel, lora: PackedLora, record: Record) -> Tensor:
    rows = [Row(0, 0, cached) for cached in build_prefix_cache(base, [record])]
    return torch.tensor(score_tokens(AdaptedModel(base, lora), rows).nll[0])


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_recall_are_those_of_peft(
    case: str, tmp_path: Path, record_property: Callable[[str, float], None]
) -> None:
    plain = tiny_model(case)
    geometry = geometry_from_config(plain.config.to_dict(), case)
    assert geometry.path == ("fast" if case in FAST else "general")
    placement = Placement((0, 1), tuple(geometry.modules), alpha_per_rank=2.0)
    base = freeze_base(copy.deepcopy(plain), None, (placement,), torch.device("cpu"))
    assert {s: base.site_shapes[s] for s in placement.sites} == {
        s: geometry.modules[s.module] for s in placement.sites
    }
    lora = PackedLora(base, RANKS, [0, 1])
    fill(lora)
    model = AdaptedModel(base, lora)
    # Longer and shorter than a window, and than the length at which longrope turns.
    records = [drawn(length, seed) for seed, length in enumerate((24, 9, 24))]
    cached = build_prefix_cache(base, records)
    found = model(
        *micro_batches([Row(n, n * 3 + i, c) for n in (0, 1) for i, c in enumerate(cached)])
    )
    found.nll_N.sum().backward()
    for n in (0, 1):
        weights, folder = lora.weights(n), tmp_path / str(n)
        save_adapter(folder, placement, weights, "x", names=PeftNames.of(base, placement))
        adapted = PeftModel.from_pretrained(copy.deepcopy(plain), str(folder), is_trainable=True)
        adapted.eval()
        expected = [peft_nll(adapted, record) for record in records]
        scores = score_tokens(model, [Row(n, i, c) for i, c in enumerate(cached)])
        off = max(
            float((torch.tensor(mine) - own.detach()).abs().max())
            for mine, own in zip(scores.nll, expected, strict=True)
        )
        # A table of all families is made of these.
        record_property(f"loss of adapter {n} off by", off)
        assert off < 1e-5
        torch.cat(expected).sum().backward()
        trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * len(placement.sites)
        (placed,) = lora._placed
        for (group, j), site in ((placed._place[s], s) for s in placement.sites):
            at = PeftNames.of(base, placement).of_site(site)
            for factor, mine in (("A", lora.factors[group].A), ("B", lora.factors[group].B)):
                own = trained[f"{at}.lora_{factor}.default.weight"]
                part = mine.grad[n, j].T
                part = part[: lora.ranks[n]] if factor == "A" else part[:, : lora.ranks[n]]
                # PEFT scales B's output; so do the pack's adapters.
                assert torch.allclose(part, own, rtol=2e-3, atol=2e-4 * float(own.abs().max()))
        recited = greedy(adapted, records[0].prompt_ids, 16)
        wrong = (*recited[:8], (recited[8] + 1) % VOCAB, *recited[9:])
        told = [Record(records[0].prompt_ids, target) for target in (recited, wrong)]
        rows = [Row(n, i, c) for i, c in enumerate(build_prefix_cache(base, told))]
        right, missed = score_tokens(model, rows).wrong
        assert not any(right) and missed[:9] == (False,) * 8 + (True,)
        decoded = decode_exactly(
            base, [Decoding(weights, placement.scale(RANKS[n]), (r,)) for r in told], 100
        )
        assert decoded == (True, False)


@pytest.mark.parametrize("case", CASES)
def test_one_module_of_one_layer_is_adapted_where_peft_adapts_it(case: str, tmp_path: Path) -> None:
    plain = tiny_model(case)
    geometry = geometry_from_config(plain.config.to_dict(), case)
    # Of Llama's shape this is the site up to which activations are cached.
    placement = Placement((0,), ([*geometry.modules][-1],))
    base = freeze_base(copy.deepcopy(plain), None, (placement,), torch.device("cpu"))
    lora = PackedLora(base, [3], [0])
    fill(lora)
    save_adapter(tmp_path, placement, lora.weights(0), "x", names=PeftNames.of(base, placement))
    adapted = PeftModel.from_pretrained(plain, str(tmp_path))
    record = drawn(24, 0)
    with torch.no_grad():
        expected = peft_nll(adapted, record)
    assert losses_of(base, lora, record) == pytest.approx(expected, abs=1e-5)
    prompt = record.prompt_ids
    told = Record(prompt, greedy(adapted, prompt, 16))
    assert decode_exactly(
        base, [Decoding(lora.weights(0), placement.scale(lora.ranks[0]), (told,))], 100
    ) == (True,)


@pytest.mark.parametrize("layers", [(0,), (0, 1)], ids=["one layer", "two layers"])
@pytest.mark.parametrize("case", CASES)
def test_the_papers_block_is_added_to_its_layers_output(case: str, layers: tuple[int, ...]) -> None:
    plain = tiny_model(case)
    geometry = geometry_from_config(plain.config.to_dict(), case)
    placement = Placement(layers, (MLP_BLOCK,))
    if geometry.refusal(MLP_BLOCK) is not None:
        assert not hasattr(find_layers(plain, 2, case)[1][0], MLP_BLOCK)
        return
    base = freeze_base(copy.deepcopy(plain), None, (placement,), torch.device("cpu"))
    lora = PackedLora(base, [3], [0])
    fill(lora)
    own_layers = find_layers(plain, 2, case)[1]
    for site, (a, b) in lora.weights(0).items():
        inputs: list[Tensor] = []
        layer = own_layers[site.layer]

        def keep(_mlp: Any, args: Any, inputs: list[Tensor] = inputs) -> None:
            inputs.append(args[0])

        def add(
            _layer: Any, _args: Any, out: Any, inputs: list[Tensor] = inputs, product: Any = a @ b
        ) -> Any:
            added = inputs.pop() @ product
            if isinstance(out, tuple):
                return (out[0] + added.view_as(out[0]), *out[1:])
            return out + added.view_as(out)

        layer.mlp.register_forward_pre_hook(keep)
        layer.register_forward_hook(add)
    record = drawn(24, 0)
    with torch.no_grad():
        expected = peft_nll(plain, record)
    assert losses_of(base, lora, record) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_passes_the_checks_of_headers(case: str, tmp_path: Path) -> None:
    tiny_model(case).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    geometry = geometry_from_config(config, case)
    check_config(config, geometry, case)
    check_tensors(config, geometry, read_tensors(tmp_path), case)


BLOCK = ["probe={placement: mlp, layer: 0}", "space.lora_rank=[16]"]
BLOCKS = [
    "probe=null", "adapter={target_modules: mlp_block, alpha: 2r}", "space.lora_rank=[8]",
]  # fmt: skip
LINEAR = [
    "probe=null", "adapter={target_modules: all-linear}", "space.lora_rank=[4]",
    "space.train_steps=[50]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "place"),
    [("gpt2", BLOCK), ("granite", BLOCKS), ("gpt2", LINEAR), ("phi3", LINEAR)],
    ids=["block of gpt2", "blocks of granite", "gpt2", "phi3"],
)
def test_a_base_is_searched_and_its_adapters_decode(
    case: str, place: list[str], search_file: Path, tiny_folder: str, tmp_path: Path
) -> None:
    """From a folder to observations, and from a stored adapter back to answers."""
    folder, store = tmp_path / case, FileStore(tmp_path / "store")
    tiny_model(case, vocab=512).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_folder) / name, folder / name)
    overrides = [
        f"model.id={folder}", "model.dtype=float32", "design.n_initial=1",
        "space={lora_rank: [1], seq_len: [12], train_steps: [200]}", *place,
        "recipe.learning_rate=5e-2", "evaluate.generate_max_tokens=100",
        "task={kind: long_context, random_ratio: 100, prompt_format: plain}",
    ]  # fmt: skip
    search = prepare_search(search_file, overrides)
    (point,) = search.spec.space.points()
    run = search.plan_run(point, "sft", 0, 0, "law")
    cache = PrefixStore(tmp_path / "cache")
    measure_pack(
        search, Pack(0, (run,)), store, store.adapters, TorchStepper, {}, prefix_store=cache
    )
    assert not store.failures()
    (found,) = store.observations()
    assert found.recall.exact == 1.0 and found.generated_match is True
    adapter = read_adapter(store.adapters / run.run_key)
    base = adapter.load_base(search.spec.model, search.source, torch.device("cpu"))
    record = search_memory(search, base.tokenizer, 0).records[0]
    (decoded,) = decode_records(base, adapter, [record], ends=())
    assert decoded.answered
    if search.placement.is_block:
        assert card_recites(store.adapters / run.run_key, record)


def card_recites(folder: Path, record: Record) -> bool:
    """Run the code of an adapter's card, but for its prompt, in the adapter's folder."""
    code = (folder / "README.md").read_text("utf-8").split("```python")[1].split("```")[0]
    code = code.replace('"./', f'"{folder}/')
    names: dict[str, Any] = {}
    exec(code[: code.index("prompt = ")], names)
    return greedy(names["model"], record.prompt_ids, len(record.target_ids)) == record.target_ids


@pytest.mark.parametrize("case", ["gpt2", "gemma2", "phi3"])
def test_a_stored_adapter_of_linear_modules_is_read_back(case: str, tmp_path: Path) -> None:
    model, folder = tiny_model(case), tmp_path / "base"
    model.save_pretrained(folder)
    geometry = geometry_from_config(model.config.to_dict(), case)
    placement = Placement((1,), tuple(geometry.modules))
    base = freeze_base(model, None, (placement,), torch.device("cpu"))
    lora = PackedLora(base, [2], [0])
    fill(lora)
    names = PeftNames.of(base, placement)
    save_adapter(tmp_path / "adapter", placement, lora.weights(0), str(folder), names=names)
    record = drawn(16, 0)
    ours = decode_exactly(base, [Decoding(lora.weights(0), placement.scale(2), (record,))], 100)
    plain = GeneralBase(tiny_model(case), None, placement)
    adapter = read_adapter(tmp_path / "adapter")
    (first,) = decode_records(plain, adapter, [record], ends=())
    told = Record(record.prompt_ids, first.answer_ids[:16])
    assert decode_exactly(
        base, [Decoding(lora.weights(0), placement.scale(lora.ranks[0]), (told,))], 100
    ) == (True,)
    assert ours == (first.answer_ids[:16] == record.target_ids,)
