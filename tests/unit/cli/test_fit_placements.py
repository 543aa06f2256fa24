"""`pmlray fit` on a table of several placements."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pmlray.cli import app
from pmlray.cli.describe.law import describe_law_json
from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.prepared_search import PreparedSearch
from pmlray.law import LawData, read_law_data
from pmlray.types import DesignPoint
from tests.fakes import observe
from tests.unit.conftest import make_search, search_file  # noqa: F401
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, placed_data
from tests.unit.study.placed_search import RUNS, placed_run, placed_spec
from tests.unit.study.placed_search import WORTHS as PLACED_WORTHS

WORTHS = {BLOCK: 1.0, DOWN: 1.5, ATTENTION: 0.6}
NAMES = ("mlp_block@20/30", "down_proj@20/30", "q_proj,v_proj@20/30")
HEADER = "placement,adapter_params,rank,length,steps,delta_loss_nats,base_loss_nats,sequence,seed"
Write = Callable[..., str]


def rows(data: LawData) -> list[list[str]]:
    assert data.placement is not None
    return [
        [
            f'"{NAMES[place]}"',
            f"{rank * data.placements[place].params_per_rank:g}",
            *(f"{x:g}" for x in (rank, length)),
            "200",
            f"{delta:.6f}",
            *("12", str(text), "0"),
        ]
        for place, rank, length, delta, text in zip(
            data.placement, data.lora_rank, data.seq_len, data.delta_loss, data.cluster, strict=True
        )
    ]


DATA = placed_data(WORTHS, 0)
ROWS = rows(DATA)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(lines: Iterable[list[str]], header: str = HEADER) -> str:
        path = tmp_path / "points.csv"
        path.write_text("\n".join([header, *map(",".join, lines)]) + "\n")
        return str(path)

    return to_file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["fit", *arguments])


def fit(*arguments: str) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_points_are_read_with_their_placements(write: Write) -> None:
    found = read_law_data(write(ROWS))
    assert [placement.name for placement in found.placements] == list(NAMES)
    np.testing.assert_array_equal(found.placement, DATA.placement)
    assert found.plain_rank == pytest.approx(DATA.plain_rank)
    kinds = [{site.kind for site in placement.sites} for placement in found.placements]
    assert kinds == [{"mlp_block"}, {"mlp_out"}, {"attention"}]


def test_worths_targets_and_the_choice_are_told(write: Write) -> None:
    file = write(ROWS)
    asked = (file, "--target", "4,512", "--target", f"{NAMES[2]}:16,256,200")
    law = fit(*asked, "--delta-loss", "5", "--form", "ceiling")
    worth = {row["name"]: row for row in law["worth"]["placements"]}
    for name, truth in zip(NAMES[1:], (1.5, 0.6), strict=True):
        assert worth[name]["value"] == pytest.approx(truth, rel=0.15)
        assert worth[name]["low"] < worth[name]["value"] < worth[name]["high"]
    assert [t["placement"] for t in law["targets"]] == [*NAMES, NAMES[2]]
    assert law["targets"][1]["adapter_params"] == 4 * 2112
    assert [size["placement"] for size in law["sizes"]] == [*NAMES, NAMES[2]]
    first, second = law["choices"]
    assert (first["seq_len"], second["seq_len"]) == (512, 256)
    assert first["placements"][0]["placement"] == NAMES[1] and first["p_first"] > 0.5
    text = describe_law_json(law)
    for words in ("a parameter is worth, beside one of mlp_block@20/30:", "mlp_out ",
                  f"in {NAMES[2]}: delta_loss", "fewest parameters for delta_loss 5 at seq_len=512",
                  f"{NAMES[1]}, then"):  # fmt: skip
        assert words in text


def test_without_ranks_the_law_is_one_of_parameters(write: Write) -> None:
    header = HEADER.replace("rank,", "")
    bare = [row[:2] + row[3:] for row in ROWS]
    data = read_law_data(write(bare, header))
    assert data.plain_rank == pytest.approx(6336 * DATA.plain_rank)
    assert any("ranks in what follows are adapter_params" in note for note in data.notes)
    assert {placement.params_per_rank for placement in data.placements} == {1.0}


def test_one_placement_is_the_law_of_its_ranks(write: Write) -> None:
    one = [row for row in ROWS if NAMES[0] in row[0]]
    bare = [row[2:] for row in one]
    told = fit(write(one), "--target", "4,512")
    assert told == fit(write(bare, HEADER.split(",", 2)[2]), "--target", "4,512")


@pytest.mark.parametrize(
    ("header", "change", "words"),
    [
        ("placement", lambda row: ['""', *row[1:]], "no placement"),
        ("adapter_params", lambda row: [row[0], "", *row[2:]], "known in 23 of 24 rows"),
        ("adapter_params", lambda row: [row[0], "99999", *row[2:]], "another name"),
    ],
)
def test_a_row_that_does_not_say_its_place_is_refused(
    write: Write, header: str, change: Callable[[list[str]], list[str]], words: str
) -> None:
    done = run(write([change(ROWS[0]), *ROWS[1:]]))
    assert done.exit_code != 0
    assert words in " ".join(str(done.exception or done.output).split()), header


def test_ranks_at_several_places_need_their_parameters(write: Write) -> None:
    lines = [[row[0], *row[2:]] for row in ROWS]
    done = run(write(lines, HEADER.replace("adapter_params,", "")))
    assert done.exit_code != 0 and "no column adapter_params" in str(done.exception)


def test_a_target_at_no_placement_is_refused(write: Write) -> None:
    done = run(write(ROWS), "--target", "o_proj:4,512")
    assert done.exit_code == 2 and "is no placement" in done.output


def test_several_stores_of_one_base_make_one_law(
    tmp_path: Path,
    make_search: Callable[..., PreparedSearch],  # noqa: F811
) -> None:
    """Each of a search with its adapter in another place."""
    folders = []
    for i, place in enumerate(("q_proj", "down_proj")):
        search = make_search("probe=null", f"adapter={{target_modules: [{place}]}}")
        folders.append(tmp_path / place)
        (folders[-1] / "observations").mkdir(parents=True)
        for n, point in enumerate(product((1, 2, 4, 8), (32, 64))):
            run = search.plan_run(DesignPoint(*point, 60), "sft", i, 0, "law")
            measured = observe(run, 0, n, 0.05, 1e-3)
            told = placement_facts(search, search.spec.space.points()[0])
            measured = replace(measured, provenance={**measured.provenance, "placement": told})
            file = folders[-1] / "observations" / f"{run.run_key}.json"
            file.write_text(json.dumps(measured.to_json()))
    law = fit(*map(str, folders), "--target", "4,64")
    assert [row["name"] for row in law["worth"]["placements"]] == [
        "q_proj of all layers", "down_proj of all layers"
    ]  # fmt: skip
    assert len(law["targets"]) == 2
    alone = fit(str(folders[0]), "--target", "4,64")
    assert "worth" not in alone and len(alone["targets"]) == 1


def test_the_store_of_a_search_over_placements_tells_each_choice(tmp_path: Path) -> None:
    """By parameters, and by what its runs measured: gpu_seconds and harm to prose."""
    rng = np.random.default_rng(3)
    runs = [placed_run(*run, 0, rng) for run in RUNS]
    spec = placed_spec()
    (tmp_path / "search.json").write_text(spec.model_dump_json(exclude_defaults=True))
    (tmp_path / "observations").mkdir()
    for o in runs:
        file = tmp_path / "observations" / f"{o.run_key}.json"
        file.write_text(json.dumps(o.to_json()))
    law = fit(str(tmp_path))
    assert [choice["by"] for choice in law["choices"]] == ["parameters", "gpu_seconds", "prose"]
    # Without a target it is for the longest text with the most steps.
    assert {(c["seq_len"], c["train_steps"]) for c in law["choices"]} == {(192, 200)}
    first = [choice["placements"][0]["placement"] for choice in law["choices"]]
    assert first == ["attention", "block", "attention"]
    names = {row["name"]: row["value"] for row in law["worth"]["placements"]}
    assert names == pytest.approx(PLACED_WORTHS, rel=0.15)
    text = describe_law_json(law | {"n_left_out": 0})
    for words in ("fewest parameters for", "fewest gpu_seconds for", "least harm to prose for"):
        assert f"  {words} delta_loss 10.1" in text
    assert "residuals follow none of effective parameters" in text or "residuals still" in text


def test_tables_are_fitted_alone(write: Write) -> None:
    file = write(ROWS)
    result = run(file, file)
    assert result.exit_code == 2 and "fitted alone" in " ".join(
        result.output.replace("│", "").split()
    )


def test_a_base_loss_is_not_ignored_where_runs_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("")
    result = run(str(tmp_path / "runs.jsonl"), "--base-loss", "12")
    assert result.exit_code == 2 and "have their own" in " ".join(
        result.output.replace("│", "").split()
    )
