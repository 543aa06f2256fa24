"""Six points, four of them with the law hardly seen: `pmlray fit` says that the law is open and how
wide, the same from a table, stored runs, a search's store and Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config.prepared_search import PreparedSearch
from pmlray.law import fit_law, law_data, read_law_data
from pmlray.types import DesignPoint, Observation
from tests.unit.study.conftest import make_observation

HEADER = "rank,length,delta_loss_nats,base_loss_nats,final_loss_nats,steps,sequence,seed"
# What six runs of a search measured; of ranks 4 and 8 at 32 and 64 tokens all was learnt.
POINTS = """4,32,14.0905,14.106,0.0155,150,1,0
1,32,12.797,14.239,1.442,150,0,0
1,160,4.344,13.458,9.114,150,0,0
2,64,11.684,13.595,1.911,150,0,0
8,64,13.627,13.638,0.011,150,1,0
4,160,8.882,13.244,4.362,150,1,0"""
TARGET = DesignPoint(8, 256, 150)
# Where runs of more than these six put the law at the target, nats per token.
MEASURED = (8.9, 9.4)


def observations() -> list[Observation]:
    runs = []
    for place, line in enumerate(POINTS.splitlines()):
        rank, length, _, base, final, steps, sequence, seed = map(float, line.split(","))
        point = DesignPoint(int(rank), int(length), int(steps))
        made = make_observation(point, int(sequence), 0, np.random.default_rng(0))
        runs.append(
            replace(
                made,
                run_key=f"{place:016x}",
                seed=int(seed),
                base_loss=base,
                final_loss=final,
                curve=((0, base), (int(steps), final)),
            )
        )
    return runs


@pytest.fixture
def sources(tmp_path: Path, make_search: Callable[..., PreparedSearch]) -> dict[str, Path]:
    """The same points as a table, as lines of stored runs, and as the store of a search."""
    table, lines, store = tmp_path / "p.csv", tmp_path / "runs.jsonl", tmp_path / "store"
    table.write_text(f"{HEADER}\n{POINTS}\n")
    lines.write_text("".join(json.dumps(o.to_json()) + "\n" for o in observations()))
    kept = FileStore(store)
    for observation in observations():
        kept.put(observation)
    search = make_search("law.n_bootstrap=200")
    (store / "search.json").write_text(search.spec.model_dump_json())
    return {"csv": table, "jsonl": lines, "store": store}


def fitted(path: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        app, ["fit", str(path), "--target", "8,256,150", "--json", *options], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_six_points_of_which_two_are_saturated_leave_the_law_open(
    sources: dict[str, Path],
) -> None:
    found = {name: fitted(path) for name, path in sources.items()}
    found["python"] = fit_law(law_data(observations()), targets=[TARGET]).to_json()
    found["table read by Python"] = fit_law(
        read_law_data(sources["csv"]), targets=[TARGET]
    ).to_json()
    for name, law in found.items():
        assert law["status"] == "UNDERDETERMINED", name
        assert "4 distinct (r, l, t) that are not saturated" in law["message"], name
        assert "leave the law open" in law["headline"] and "%" not in law["headline"], name
        [target] = law["targets"]
        assert target["low"] <= MEASURED[0] and MEASURED[1] <= target["high"], (name, target)
        assert target["run_low"] < target["low"] and target["high"] < 14.3, name
        # Saturated runs that end within hundredths of a nat of each other are not the noise.
        assert law["noise"]["sigma"] > 0.03, name
        assert law["extrapolation_mape"] is None, name
        assert law["n_obs"] == 6, name
    first = found["csv"]
    for name, law in found.items():
        for key in ("form", "status", "message", "headline", "unidentified"):
            assert law[key] == first[key], (name, key)
        # A stored run's delta_loss is the difference of two losses, so the last digits differ.
        assert law["weights"] == pytest.approx(first["weights"], rel=1e-4), name
        assert law["targets"][0] == pytest.approx(first["targets"][0], rel=1e-3), name
        for parameter, interval in law["intervals"].items():
            assert interval == pytest.approx(first["intervals"][parameter], rel=1e-3), name


def test_the_text_says_so_first(sources: dict[str, Path]) -> None:
    shown = CliRunner().invoke(app, ["fit", str(sources["csv"]), "--target", "8,256,150"]).output
    first, second, *_ = shown.splitlines()
    assert "leave the law open" in first and "UNDERDETERMINED" in second
    assert "not saturated" in shown and "measure next:" in shown
