"""A search over three placements, drawn from a known law of effective parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from pmlray.config.bases.models import KNOWN_MODELS, TINY
from pmlray.config.search_spec import SearchSpec
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.types import DesignPoint, FailedRun, Method, Observation, Phase
from tests.unit.study.conftest import STEPS, make_observation, make_spec

# Ascending, so that the file's order is not that of names. Each begins at a layer of its own: runs
# of those that begin at the same one share packs, which tell no difference of their gpu_seconds.
PLACES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": "all-linear", "layers": (0,), "lora_rank": (1, 2)},
    "block": {"target_modules": "mlp_block", "layers": (1,)},
    "attention": {"target_modules": ("q_proj", "v_proj"), "layers": (2,)},
}
# Parameters of an adapter of rank 1, and what each is worth beside one of the block.
PER_RANK = {"linear": 1024, "block": 128, "attention": 224}
WORTHS = {"linear": 0.5, "block": 1.0, "attention": 1.6}
# gpu_seconds of a step of one token, and loss added on prose at one parameter.
SECONDS = {"linear": 3e-3, "block": 1e-3, "attention": 2e-3}
HARM = {"linear": 0.02, "block": 0.05, "attention": 0.01}
RUNS = tuple(
    (name, rank, length, (i + j) % 2)
    for i, (name, ranks) in enumerate(
        (("linear", (1, 2)), ("block", (1, 4, 16)), ("attention", (1, 2, 8)))
    )
    for j, rank in enumerate(ranks)
    for length in (48, 96, 192)
)


def placed_spec(**changes: Any) -> SearchSpec:
    """The spec of the search."""
    space = {
        "placement": PLACES,
        "lora_rank": (1, 2, 4, 8, 16),
        "seq_len": (48, 96, 192),
        "train_steps": (STEPS,),
    }
    settings: dict[str, Any] = {"space": space, "probe": None, "design": {"n_initial": 6}}
    settings |= {"name": "placed", "law": {"n_bootstrap": 60, "forms": ("ceiling",)}}
    return make_spec(**settings | changes)


def placed_run(
    name: str,
    rank: int,
    length: int,
    text: int,
    round_: int,
    rng: np.random.Generator,
    method: Method = "sft",
    phase: Phase = "law",
) -> Observation:
    """A run at one placement, with its provenance as the engine tells it."""
    n_params = PER_RANK[name] * rank
    own = DesignPoint(rank, length, STEPS, name)
    # The known law takes ranks of the block.
    effective = WORTHS[name] * n_params / PER_RANK["block"]
    like = replace(own, lora_rank=effective)  # type: ignore[arg-type]
    o = make_observation(like, text, round_, rng, method, phase)
    geometry, place = KNOWN_MODELS[TINY], placed_spec().places[name]
    sites = place.resolve(geometry.n_layers, geometry.modules)
    told = {
        **sites.to_json(),
        "name": name,
        "n_layers": geometry.n_layers,
        "params_per_rank": {m: sum(geometry.adaptable[m]) for m in sites.modules},
    }
    harm = HARM[name] * (math.log(n_params) + 0.1 * float(rng.standard_normal()))
    seconds = SECONDS[name] * length * STEPS * math.exp(0.02 * float(rng.standard_normal()))
    return replace(
        o,
        run_key=f"{method}-{name}-r{rank}-l{length}-q{text}-n{round_}",
        point=own,
        gpu_seconds=seconds,
        prose_delta_loss=-harm,
        provenance={
            **o.provenance,
            "adapter_params_per_rank": PER_RANK[name],
            "adapter_params": n_params,
            "placement": told,
        },
    )


def placed_search(names: tuple[str, ...] = tuple(PLACES), **changes: Any) -> SearchResult:
    """The result of the search with runs of some placements, two pairs of MemFT among them."""
    rng = np.random.default_rng(3)
    runs = [placed_run(*run, i // 12, rng) for i, run in enumerate(RUNS) if run[0] in names]
    runs += [
        placed_run(name, 2, 96, 0, 9, rng, method, "memft")
        for name in names[:2]
        for method in ("sft", "memft_ot")
    ]
    failed = FailedRun("f00", DesignPoint(16, 48, STEPS, names[0]), 1, 3, "loss is NaN", 4.5)
    return assemble(placed_spec(**changes), runs, [failed], [])
