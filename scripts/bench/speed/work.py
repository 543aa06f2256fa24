"""What every way of training is given: the same base, records in the same order, first weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from pmlray.config.adapters.placement import Placement, Site
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.models import KNOWN_MODELS, SMOLLM2, TINY, resolve_model
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.packed_factors import initial_As
from pmlray.engine.adapters.peft_io import LLAMAS_NAMES, peft_settings
from pmlray.engine.model.prompts import render_prompt
from pmlray.memory import Record, TaskSource, build_memory

# Speed does not depend on the weights' values, and no hub is in reach: these two are random.
RANDOM_WEIGHTS = {
    "qwen3-8b": (KNOWN_MODELS["Qwen/Qwen3-8B"], Qwen3Config),
    "llama-3.1-8b": (KNOWN_MODELS["meta-llama/Llama-3.1-8B-Instruct"], LlamaConfig),
}
LAYERS = {SMOLLM2: 20, TINY: 1, "qwen3-8b": 24, "llama-3.1-8b": 18}
# The authors' prompts of both tasks with their chat template, and PhoneBook's digits (paper.md).
RANDOM_PROMPT, RANDOM_TARGET = 36, 10
KEY_PROMPT = "Please output the content of the vector memory injected into the activations."
LEARNING_RATE = 1e-3
Weights = tuple[Tensor, Tensor]
Task = Literal["phonebook", "long_context"]
Dtype = Literal["float32", "bfloat16"]
# LoRA on one layer's down_proj, which every way can express; on q and v, or on every linear module,
# of all layers.
Place = Literal["down_proj", "q_v", "all_linear"]


@dataclass(frozen=True)
class Work:
    """What is trained. `train_steps` is the schedule's horizon (linear to 0, no warm-up);
    `seq_len` and `batch_size` are those of each adapter."""

    model: str
    task: Task
    seq_len: int
    batch_size: int
    lora_rank: int
    n_adapters: int = 1
    dtype: Dtype = "bfloat16"
    train_steps: int = 4096
    seed: int = 0
    place: Place = "down_proj"

    @property
    def layer(self) -> int:
        """The adapted decoder layer k."""
        return LAYERS[self.model]

    @property
    def probe(self) -> Probe:
        """LoRA on layer k's down_proj."""
        return Probe(placement="down_proj", layer=self.layer)

    @property
    def placement(self) -> Placement:
        """Sites of the adapter; its scale is 1."""
        if self.place == "down_proj":
            return self.probe.to_placement()
        modules = tuple(self.geometry.modules)
        if self.place == "q_v":
            modules = ("self_attn.q_proj", "self_attn.v_proj")
        return Placement(tuple(range(self.geometry.n_layers)), modules)

    @property
    def geometry(self) -> Geometry:
        """The base's sizes."""
        if self.model in RANDOM_WEIGHTS:
            return RANDOM_WEIGHTS[self.model][0]
        return KNOWN_MODELS[self.model]

    @property
    def recipe(self) -> Recipe:
        """AdamW without decay, clipped at 1; no rule that ends a run early."""
        return Recipe(
            learning_rate=LEARNING_RATE,
            schedule="linear",
            warmup_steps=0,
            batch_size=self.batch_size,
            stop_loss=0.0,
            stop_gain=0.0,
        )

    def alone(self) -> Work:
        """The same with a single adapter."""
        return replace(self, n_adapters=1)

    def to_json(self) -> str:
        """As one line, for a process of its own."""
        return json.dumps(asdict(self))


def work_from_json(text: str) -> Work:
    """What `to_json` wrote."""
    return Work(**json.loads(text))


def tokenizer_of(work: Work) -> Any:
    """The base's tokenizer; SmolLM2's stands in where weights are random, and only its pad token
    is ever used."""
    name = SMOLLM2 if work.model in RANDOM_WEIGHTS else work.model
    return AutoTokenizer.from_pretrained(str(resolve_model(name, None).folder))


def load_model(work: Work) -> Any:
    """The base in `work.dtype` on the best device there is, frozen, without dropout."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, work.dtype)
    if work.model in RANDOM_WEIGHTS:
        g, make_config = RANDOM_WEIGHTS[work.model]
        config = make_config(
            vocab_size=g.vocab,
            hidden_size=g.hidden,
            intermediate_size=g.intermediate,
            num_hidden_layers=g.n_layers,
            num_attention_heads=g.n_heads,
            num_key_value_heads=g.n_kv_heads,
            head_dim=g.head_dim,
            max_position_embeddings=g.context,
            tie_word_embeddings=False,
        )
        with device:
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa"
            )
    else:
        folder = str(resolve_model(work.model, None).folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.to(device).eval()


def records_of(work: Work, tokenizer: Any) -> tuple[Record, ...]:
    """What an adapter memorises."""
    if work.model in RANDOM_WEIGHTS:
        return _random_records(work)
    task = TaskSource(work.task, data_seed=work.seed, key_prompt=KEY_PROMPT)
    render = partial(render_prompt, tokenizer, prompt_format="plain")
    return build_memory(task, 0, work.seq_len, tokenizer.backend_tokenizer, render).records


def _random_records(work: Work) -> tuple[Record, ...]:
    target = RANDOM_TARGET if work.task == "phonebook" else work.seq_len
    rng = np.random.default_rng(work.seed)
    ids = rng.integers(1000, work.geometry.vocab, (work.seq_len // target, RANDOM_PROMPT + target))
    return tuple(
        Record(tuple(row[:RANDOM_PROMPT]), tuple(row[RANDOM_PROMPT:])) for row in ids.tolist()
    )


def batch_at(work: Work, n_records: int, step: int) -> list[int]:
    """The records of a step, as `Member.rows_at` picks them."""
    if n_records <= work.batch_size:
        return list(range(n_records))
    chosen = []
    for position in range(step * work.batch_size, (step + 1) * work.batch_size):
        epoch, index = divmod(position, n_records)
        chosen.append(int(np.random.default_rng([work.seed, epoch]).permutation(n_records)[index]))
    return chosen


def first_As(work: Work) -> dict[Site, Tensor]:
    """The adapter's A (X, r) at each site before training; B is 0."""
    modules = work.geometry.modules
    shapes = {site: modules[site.module] for site in work.placement.sites}
    return initial_As(shapes, work.lora_rank, work.seed)


def collate(records: Sequence[Record]) -> dict[str, Tensor]:
    """Records as a rectangle, padded on the right; only targets are labelled."""
    longest = max(len(record.prompt_ids) + len(record.target_ids) for record in records)
    ids = torch.zeros(len(records), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, record in enumerate(records):
        start, end = len(record.prompt_ids), len(record.prompt_ids) + len(record.target_ids)
        ids[row, :end] = torch.tensor(record.prompt_ids + record.target_ids)
        labels[row, start:end] = ids[row, start:end]
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def peft_model(work: Work, model: Any) -> Any:
    """The base with PEFT's LoRA at the same sites (scale 1), started from the same weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **peft_settings(work.placement, work.lora_rank))
    adapted = get_peft_model(model, config)
    parameters = dict(adapted.named_parameters())
    for site, first in first_As(work).items():
        at = LLAMAS_NAMES.of_site(site)
        parameters[f"{at}.lora_A.default.weight"].data.copy_(first.T)
    return adapted


def peft_weights(work: Work, adapted: Any) -> Weights:
    """The trained A (X, r) and B (r, D) of `peft_model` at its last site."""
    last = work.placement.sites[-1]
    at = LLAMAS_NAMES.of_site(last)
    found = dict(adapted.named_parameters())
    a, b = (found[f"{at}.lora_{part}.default.weight"].detach().T for part in "AB")
    return a, b
