"""A search as its report sees it, drawn from a known law, and a reader of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmlray.config.search_spec import SearchSpec
from pmlray.law import CeilingLaw
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.report.figures.style import Panel
from pmlray.study.report.search_report import write_report
from pmlray.types import (
    DesignPoint,
    FailedRun,
    Method,
    Observation,
    PackTimes,
    Phase,
    Recall,
)

TRUE_LAW = CeilingLaw(79.0, 0.6, 0.7, -0.05, 5.0, base_loss=10.8)
NOISE = 0.15
STEPS = 200
# (lora_rank, seq_len, sequence_id) of five rounds.
ROUNDS = (
    ((1, 32, 0), (1, 192, 1), (4, 64, 0), (4, 192, 0), (16, 96, 1), (16, 192, 0)),
    ((2, 48, 1), (8, 128, 0), (2, 128, 1)),
    ((4, 96, 1), (1, 96, 0), (8, 192, 1)),
    ((2, 192, 0), (2, 64, 0), (16, 128, 1)),
    ((16, 192, 1), (8, 96, 0), (4, 192, 1)),
)
MakeResult = Callable[..., SearchResult]


class Page(HTMLParser):
    """The elements and the texts of a page, and the content of its scripts by their id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.styles = ""
        self.text = ""
        self._inside: tuple[str, str] = ("", "")
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = (tag, dict(attrs).get("id") or f"script-{len(self.scripts)}")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside[0]:
            self._inside = ("", "")

    def handle_data(self, data: str) -> None:
        kind, name = self._inside
        if kind == "script":
            self.scripts[name] = self.scripts.get(name, "") + data
        elif kind == "style":
            self.styles += data
        else:
            self.text += data

    def figures(self) -> set[str]:
        return {a["data-figure"] or "" for _, a in self.elements if "data-figure" in a}

    def specs(self) -> dict[str, Any]:
        """The figures' specifications, each with its rows as the page's script gives it them."""
        data = {
            name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
            for name, table in json.loads(self.scripts["data"]).items()
        }
        return {
            key: {**spec, "datasets": {name: data[name] for name in spec["datasets"]}}
            for key, spec in json.loads(self.scripts["specs"]).items()
        }


def make_spec(**changes: Any) -> SearchSpec:
    settings: dict[str, Any] = {
        "name": "synthetic",
        "task": {"kind": "long_context", "prompt_format": "plain"},
        "model": {"id": "tiny-random-llama", "dtype": "float32"},
        "probe": {"layer": 1},
        "space": {
            "lora_rank": (1, 2, 4, 8, 16),
            "seq_len": (32, 48, 64, 96, 128, 192),
            "train_steps": (STEPS,),
        },
        "law": {"n_bootstrap": 30},
        "design": {"targets": {"lora_rank": (16,), "seq_len": (192, 256)}},
        "budget": {"gpu_seconds": 900.0, "memft_gpu_seconds": 300.0},
        "stop": {"relative_interval": 0.05},
        "memft": {"n_points": 2},
    }
    return SearchSpec.model_validate(settings | changes)


def make_observation(
    point: DesignPoint,
    sequence_id: int,
    round_: int,
    rng: np.random.Generator,
    method: Method = "sft",
    phase: Phase = "law",
) -> Observation:
    law = TRUE_LAW.predict(point.lora_rank, point.seq_len, point.train_steps)
    base = TRUE_LAW.base_loss
    final = max(0.002, base - float(law) + NOISE * float(rng.standard_normal()))
    if method != "sft":
        final *= 0.6
    p = np.exp(-rng.gamma(0.6, final / 0.6, point.seq_len))
    wrong = np.flatnonzero(p < 0.5 * rng.uniform(0.3, 1.0, p.size))
    return Observation(
        run_key=f"{method}-r{point.lora_rank}-l{point.seq_len}-q{sequence_id}-n{round_}",
        point=point,
        task="long_context",
        method=method,
        seed=0,
        sequence_id=sequence_id,
        phase=phase,
        round=round_,
        place=0,
        supervised_tokens=point.seq_len,
        base_loss=base,
        final_loss=final,
        recall=Recall(
            token=1.0 - wrong.size / p.size,
            prefix=float(wrong[0] if wrong.size else p.size) / p.size,
            exact=float(wrong.size == 0),
            n_stubborn=int(np.sum(p <= 0.5)),
        ),
        curve=((0, base), (point.train_steps, final)),
        token_p=tuple(p.tolist()),
        wrong_tokens=tuple(wrong.tolist()),
        generated_match=True if wrong.size == 0 else None,
        gpu_seconds=3.0 + 0.1 * point.seq_len,
        charged_steps=float(point.train_steps),
        tokens_per_second=1e4,
        peak_memory_bytes=10**9,
        provenance={
            "model": "tiny-random-llama@abc",
            "device_name": "test CPU",
            "gpu_seconds_unit": "CPU core",
            "versions": {"pmlray": "0.1.0", "torch": "2.13.0"},
        },
    )


@pytest.fixture(scope="session")
def make_result() -> MakeResult:
    """make_result(n_rounds=5, memft=True, **spec changes): 18 law points and 8 MemFT pairs.

    `memft` says whether the pairs were run, `memft_spec` replaces what the spec asks for.
    """

    def build(n_rounds: int = 5, memft: bool = True, **changes: Any) -> SearchResult:
        rng = np.random.default_rng(7)
        if "memft_spec" in changes:
            changes["memft"] = changes.pop("memft_spec")
        spec = make_spec(**changes)
        observations = [
            make_observation(DesignPoint(r, length, STEPS), q, i, rng)
            for i, chosen in enumerate(ROUNDS[:n_rounds])
            for r, length, q in chosen
        ]
        methods: tuple[Method, ...] = ("sft", "memft_ot", "memft_sw")
        if memft:
            observations += [
                make_observation(DesignPoint(r, length, STEPS), q, 5, rng, method, "memft")
                for r, length in ((4, 48), (8, 64))
                for q in (0, 1)
                for method in methods
            ]
        failures = [
            FailedRun(
                "f00", DesignPoint(16, 32, STEPS), 2, 3, "loss <b>NaN</b>; lower the rate", 4.5
            )
        ]
        packs = [PackTimes(f"pack-{i:03d}", i, 30.0, 48.0) for i in range(n_rounds)]
        return assemble(spec, observations, failures, packs)

    return build


@pytest.fixture(scope="session")
def result(make_result: MakeResult) -> SearchResult:
    """The whole of it, fitted once."""
    return make_result()


@pytest.fixture(scope="session")
def placed_result() -> SearchResult:
    """A search over three placements, fitted once."""
    from tests.unit.study.placed_search import placed_search

    return placed_search()


@pytest.fixture(scope="session")
def placed_folder(placed_result: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, without the drawing code and the figures' files, which take most of the time and
    are as those of one placement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmlray.study.report.page.vega_bundle", lambda: "")
        patch.setattr(Panel, "svg", lambda self, spec: "<svg/>")
        return write_report(placed_result, tmp_path_factory.mktemp("placed"), {}).parent


@pytest.fixture(scope="session")
def placed_page(placed_folder: Path) -> Page:
    """The page of that report."""
    return Page((placed_folder / "report.html").read_text("utf-8"))


@pytest.fixture(scope="session")
def placed_specs(placed_page: Page) -> dict[str, dict[str, Any]]:
    """The specification of every figure of that page, by its key."""
    return placed_page.specs()
