"""Tables of real measurements as worlds: what a policy may measure there, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmlray.config import SearchSpec, load_search
from pmlray.design import CostModel, DesignSpace
from pmlray.study.search.replay_table import ReplayTable, read_table
from pmlray.types import DesignPoint
from scripts.bench.design.offline import Charge, Measured, Run, World

TABLES = Path(__file__).resolve().parents[3] / "searches" / "tables"
HELDOUT_LENGTHS = 2


def table_names() -> list[str]:
    """The shipped tables, by the name that a search file and its CSV share."""
    return sorted(path.stem for path in TABLES.glob("*.csv"))


def table_world(name: str, seed: int, *, without_control: bool = False) -> World:
    """A shipped table without its two largest lengths and its largest rank, which are the targets.

    `seed` orders the sequences: with which of them a policy begins. A run costs its token-steps at
    the mean rate of the whole table, so that a busy minute of the machine prices no cell.
    `without_control`: losses fall by what was memorised, from what the control leaves to memorise:
    what an adapter learnt of fresh text of the same kind is taken from both.
    """
    spec = load_search(TABLES / f"{name}.yaml")
    table = read_table(TABLES / f"{name}.csv")
    cells = {point for point, _, _ in table.rows}
    ranks = sorted({c.lora_rank for c in cells})
    lengths = sorted({c.seq_len for c in cells})
    small = [c for c in cells if c.lora_rank < ranks[-1] and c.seq_len < lengths[-HELDOUT_LENGTHS]]
    targets = tuple(sorted(cells - set(small)))
    replicates = sorted({(sequence, seed_) for _, sequence, seed_ in table.rows})
    order = np.random.default_rng(seed).permutation(len(replicates))
    tokens = [
        np.mean([_row(table, t, pair)["supervised_tokens"] for pair in replicates]) for t in targets
    ]
    cost = _cost(spec, table)
    decay_share = cost.decay_share

    def measure(point: DesignPoint, replicate: tuple[int, int]) -> Measured:
        row = _row(table, point, replicate)
        # A control that got worse has learnt nothing: the adapter has unlearnt the kind of text.
        learnt = max(row["control_delta_loss_nats"], 0.0) if without_control else 0.0
        fell, base = row["delta_loss_nats"] - learnt, row["base_loss_nats"] - learnt
        return Measured(fell, base, row["supervised_tokens"])

    def charge(pack: Sequence[Run]) -> list[Charge]:
        steps = table.charged_steps([(point, *pair) for point, pair in pack], decay_share)
        return [
            Charge(cost.seconds_per_token * cost.tokens_per_step(point) * paid, paid)
            for (point, _), paid in zip(pack, steps, strict=True)
        ]

    heldout = np.array([[measure(t, pair).delta_loss for pair in replicates] for t in targets])
    return World(
        DesignSpace(tuple(sorted(small)), tuple(replicates[i] for i in order)),
        measure,
        charge,
        targets,
        np.array(tokens),
        heldout,
        cost,
    )


def _row(table: ReplayTable, point: DesignPoint, replicate: tuple[int, int]) -> dict[str, float]:
    return dict(table.rows[(point, *replicate)])


def _cost(spec: SearchSpec, table: ReplayTable) -> CostModel:
    one_record = spec.task.kind == "long_context"
    blank = CostModel(
        0.0,
        prompt_tokens=0,
        batch_records=None if one_record else spec.recipe.batch_size,
        decay_share=spec.recipe.decay_share if spec.recipe.shares_trunks else None,
    )
    return blank.learn(
        (point, row["charged_steps"], row["gpu_seconds"])
        for (point, _, _), row in table.rows.items()
    )
