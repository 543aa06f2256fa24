"""Reading points: what is kept, what is refused, and what the message names."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import LawData, law_data, read_law_data
from pmlray.law.data import check_point
from pmlray.types import DesignPoint, Observation, Recall


def observation(**changes) -> Observation:
    fields = {
        "run_key": "k0",
        "point": DesignPoint(8, 1000, 500),
        "task": "phonebook",
        "method": "sft",
        "seed": 0,
        "sequence_id": 0,
        "phase": "law",
        "round": 0,
        "supervised_tokens": 996,
        "base_loss": 5.0,
        "final_loss": 2.0,
        "recall": Recall(0.5, 0.1, 0.0, 3),
        "curve": ((0, 5.0), (500, 2.0)),
        "token_p": (0.5, 0.6),
        "wrong_tokens": (1,),
        "generated_match": None,
        "gpu_seconds": 1.0,
        "place": 0,
        "charged_steps": 500.0,
        "tokens_per_second": 10.0,
        "peak_memory_bytes": 1,
        "provenance": {},
    }
    return Observation(**{**fields, **changes})


def test_only_the_law_phase_counts_and_l_is_what_was_supervised():
    data = law_data(
        [
            observation(seed=1),
            observation(method="memft_ot", phase="memft"),
            observation(method="sft", phase="memft"),
            observation(run_key="k1", sequence_id=2, base_loss=6.0),
            observation(run_key="k2", seed=1, point=DesignPoint(4, 1000, 500)),
        ]
    )
    assert data.lora_rank.tolist() == [8, 8, 4]
    assert data.seq_len.tolist() == [996, 996, 996]
    assert data.train_steps.tolist() == [500, 500, 500]
    assert data.delta_loss.tolist() == [3.0, 4.0, 3.0]
    assert data.cluster[0] == data.cluster[2] != data.cluster[1]


def test_a_run_that_comes_twice_counts_once_and_must_agree_with_itself(tmp_path):
    assert len(law_data([observation(), observation()])) == 1
    with pytest.raises(DataError, match=r"run_key k0 comes twice .* 3 and 4 nats"):
        law_data([observation(), observation(base_loss=6.0)])
    columns = "rank,length,delta_loss_nats,steps,sequence,seed\n"
    table = tmp_path / "runs.csv"
    table.write_text(columns + "1,64,3.0,100,0,0\n1,64,3.0,100,0,0\n1,64,3.5,100,1,0\n")
    data = read_law_data(table)
    assert data.delta_loss.tolist() == [3.0, 3.5]
    assert data.cluster.tolist() == [0, 1]
    table.write_text(columns + "1,64,3.0,100,0,0\n1,64,3.5,100,0,0\n")
    with pytest.raises(DataError, match="line 3: the run of line 2"):
        read_law_data(table)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"final_loss": float("nan")}, "delta_loss"),
        ({"final_loss": float("inf")}, "delta_loss"),
        ({"base_loss": 0.0}, "base_loss"),
        ({"supervised_tokens": 0}, "length"),
    ],
)
def test_points_that_cannot_be_used_are_refused(changes, what):
    with pytest.raises(DataError, match=f"observation k0.*{what}"):
        law_data([observation(**changes)])


def test_csv_has_one_cluster_a_row_and_skips_comments(paper_csv):
    data = read_law_data(paper_csv, base_loss=12.4)
    assert len(data) == 70
    assert np.unique(data.cluster).size == 70
    assert (data.lora_rank[0], data.seq_len[0], data.delta_loss[0]) == (1, 200, 12.112)
    assert data.final_loss[0] == pytest.approx(12.4 - 12.112)
    assert np.all(data.train_steps == 0)
    assert np.all(np.isnan(read_law_data(paper_csv).base_loss))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,length\n1,2\n", "line 1: no column delta_loss_nats"),
        ("rank,length,delta_loss_nats\n1,200,x\n", "line 2: '1,200,x'; expected numbers"),
        ("# c\nrank,length,delta_loss_nats\n1,200\n", "line 3: 2 cells under the 3 columns"),
        ("rank,length,delta_loss_nats\n1,200,nan\n", "line 2: delta_loss is nan"),
        ("rank,length,delta_loss_nats\n0,200,1\n", "line 2: rank 0"),
        ("rank,length,delta_loss_nats,final_loss_nats\n1,200,3,nan\n", "final_loss_nats is nan"),
        ("rank,length,delta_loss_nats,final_loss_nats\n1,200,3,inf\n", "final_loss_nats is inf"),
        ("rank,length,delta_loss_nats,seed\n1,200,3,nan\n", "line 2: seed is nan"),
        (
            "rank,length,delta_loss_nats,base_loss_nats,final_loss_nats\n1,200,3,9,5\n",
            "line 2: base_loss 9 less delta_loss 3 is not final_loss 5",
        ),
        ("rank,length,delta_loss_nats\n", "no points"),
        ("rank,length,delta_loss_nats,steps\n1,2,3,9\n1,3,3,\n", "steps is known in 1 of 2 rows"),
        ("", "no points"),
    ],
)
def test_bad_csv_is_refused_with_file_and_line(tmp_path, text, message):
    file = tmp_path / "points.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_law_data(file)
    assert str(file) in str(error.value)


def test_losses_of_a_row_may_differ_by_their_rounding(tmp_path):
    file = tmp_path / "points.csv"
    file.write_text(
        "rank,length,delta_loss_nats,base_loss_nats,final_loss_nats\n1,200,3.01,9.0,5.95\n2,9,3,9,\n"
    )
    np.testing.assert_array_equal(read_law_data(file).final_loss, [5.95, 6.0])


def test_a_sequence_without_a_seed_still_makes_a_cluster(tmp_path):
    file = tmp_path / "points.csv"
    rows = "1,200,3,{}\n1,200,4,{}\n2,400,5,{}\n8,400,5,\n4,400,5,\n"
    for name in ("sequence", "seed"):
        file.write_text(f"rank,length,delta_loss_nats,{name}\n" + rows.format(0, 0, 1))
        ids = read_law_data(file).cluster.tolist()
        assert ids[0] == ids[1] and len(set(ids)) == 4


def test_csv_columns_may_come_in_any_order_with_others_beside(tmp_path):
    file = tmp_path / "points.csv"
    file.write_text("delta_loss_nats, note ,length, rank\n3.5,a,200, 2\n")
    data = read_law_data(file)
    assert (data.lora_rank[0], data.seq_len[0], data.delta_loss[0]) == (2, 200, 3.5)


def test_jsonl_and_folders_give_the_same_points(tmp_path):
    stored = [observation(run_key=f"k{i}", seed=i, base_loss=5.0 + i) for i in range(3)]
    lines = [json.dumps(o.to_json()) for o in stored]
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n\n")
    store, flat = tmp_path / "store", tmp_path / "flat"
    (store / "observations").mkdir(parents=True)
    flat.mkdir()
    for i, line in enumerate(lines):
        (store / "observations" / f"k{i}.json").write_text(line)
        (flat / f"k{i}.json").write_text(line)
    expected = law_data(stored)
    for source in (tmp_path / "all.jsonl", store, flat):
        data = read_law_data(source)
        for name in ("lora_rank", "seq_len", "train_steps", "delta_loss", "base_loss", "cluster"):
            np.testing.assert_array_equal(getattr(data, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 .*not JSON"),
        ("[1]", "line 2: not a stored observation"),
        ('{"run_key": "k"}', "line 2: not a stored observation"),
        (json.dumps({**observation().to_json(), "base_loss": -1.0}), "line 2: base_loss is -1"),
        (json.dumps({**observation().to_json(), "base_loss": "x"}), "line 2: not a stored obs"),
    ],
)
def test_bad_jsonl_is_refused_with_file_and_line(tmp_path, line, message):
    file = tmp_path / "all.jsonl"
    file.write_text(json.dumps(observation().to_json()) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_law_data(file)


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_law_data(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"no observations/\*\.json"):
        read_law_data(tmp_path)
    other = tmp_path / "points.xlsx"
    other.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"expected a \.csv"):
        read_law_data(other)
    other.rename(tmp_path / "points.csv")
    with pytest.raises(DataError, match="UTF-8"):
        read_law_data(tmp_path / "points.csv")


def test_a_base_loss_that_is_none_is_refused(paper_csv):
    with pytest.raises(DataError, match="base_loss is -1"):
        read_law_data(paper_csv, base_loss=-1.0)


@pytest.mark.parametrize("name", ["lora_rank", "seq_len", "train_steps", "delta_loss", "base_loss"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -1.0, -1e-30, math.nan, math.inf, -math.inf])
def test_arrays_are_refused_where_one_point_would_be(name: str, value: float) -> None:
    good = {"lora_rank": 2.0, "seq_len": 16.0, "train_steps": 10.0, "delta_loss": 1.0,
            "base_loss": 5.0}  # fmt: skip
    columns = {n: np.array([g, value if n == name else g, g]) for n, g in good.items()}
    rest = {"final_loss": np.full(3, math.nan), "cluster": np.zeros(3, dtype=np.int64)}
    point = good | {name: value}
    try:
        check_point("point 1", *point.values())
    except DataError as error:
        with pytest.raises(DataError) as caught:
            LawData(**columns, **rest)
        assert str(caught.value) == str(error)
    else:
        assert len(LawData(**columns, **rest)) == 3


def test_runs_that_began_otherwise_have_no_law_in_common() -> None:
    begun = [{}, {"from_adapter": {"sha256": "ab" * 32}}, {"from_adapter": {"sha256": "cd" * 32}}]
    runs = [observation(run_key=f"k{i}", provenance=told) for i, told in enumerate(begun)]
    again = [observation(run_key=f"n{i}", provenance=told) for i, told in enumerate(begun)]
    for one, other in zip(runs, again, strict=True):
        assert len(law_data([one, other])) == 2
    for pair in ((0, 1), (1, 0), (1, 2)):
        with pytest.raises(DataError, match=r"is of the start from .* no law in common"):
            law_data([runs[i] for i in pair])
    with pytest.raises(DataError, match="from_adapter in its provenance cannot be read"):
        law_data([observation(provenance={"from_adapter": "ab"})])
