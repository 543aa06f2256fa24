"""What is kept up run by run, beside the same worked out from all runs at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pmlray.design import ChosenRun, CostModel, FittedForm, History, PendingSpend, law_field
from pmlray.design.grid_field import GridField
from pmlray.law import LawData, average_laws
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

CELLS = tuple(
    DesignPoint(r, n, t) for r in (1, 2, 4, 8) for n in (32, 64, 128) for t in (50, 100, 400)
)
REPLICATES = ((0, 0), (1, 0), (2, 0))
TARGETS = (DesignPoint(8, 128, 400), DesignPoint(64, 512, 400))


def runs(n: int, seed: int) -> list[ChosenRun]:
    every = [ChosenRun(c, r, False) for c in CELLS for r in REPLICATES]
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:n]]


def log_distance(a: DesignPoint, b: DesignPoint) -> float:
    """In the grid's own unit cube, by hand: ranks and budgets span a factor of 8, lengths of 4."""
    ratios = (a.lora_rank / b.lora_rank, a.seq_len / b.seq_len, a.train_steps / b.train_steps)
    return float(np.linalg.norm(np.log(ratios) / np.log([8, 4, 8])))


def test_a_history_says_at_any_run_what_all_of_them_say() -> None:
    history = History()
    chosen: list[ChosenRun] = []
    for n, run in enumerate(runs(80, 0)):
        history.add(run)
        chosen.append(run)
        if n % 9:
            continue
        uses = {r: sum(c.replicate == r for c in chosen) for r in REPLICATES}
        expected = []
        for cell in CELLS:
            free = [r for r in REPLICATES if ChosenRun(cell, r, False) not in chosen]
            if free:
                expected.append((cell, min(free, key=lambda r: (uses[r], REPLICATES.index(r)))))
        assert list(history.next_replicates(CELLS, REPLICATES)) == expected
        assert history.took(run.point, run.replicate)
        assert history.seen[run.point] == sum(c.point == run.point for c in chosen)
        nearest = [min(log_distance(cell, c.point) for c in chosen) for cell in CELLS]
        assert history.distances(CELLS) == pytest.approx(nearest, abs=1e-12)
    # Another grid has another unit cube.
    assert history.distances(CELLS[:9]) == pytest.approx(History(chosen).distances(CELLS[:9]))
    assert np.all(History().distances(CELLS) == np.inf)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_what_filled_space_is_told_again_for_another_rate(share: float) -> None:
    history, points = History(), []
    for i, run in enumerate(runs(50, 1)):
        history.add(run)
        points.append(run.point)
        # Measured runs change the rate now and then.
        cost = CostModel(1e-3 * (1 + i // 20), prompt_tokens=4, batch_records=None)
        seconds = [cost.predict(point) for point in points]
        filling = spent = 0.0
        for n, s in enumerate(seconds):
            filling += s if n < 6 or filling < share * spent else 0.0
            spent += s
        assert history.fills_too_little(6, share, cost) == (filling < share * spent)


def test_what_pending_runs_cost_is_that_of_all_together() -> None:
    """Of each text, seed, rank and length the longest in full, the others their decay."""
    cost = CostModel(1e-3, prompt_tokens=4, batch_records=None, decay_share=0.25)
    pending, asked = PendingSpend(cost), runs(30, 2)
    for n, run in enumerate(asked, 1):
        pending.add(run)
        families: dict[tuple, list[int]] = {}
        for r in asked[:n]:
            same = (r.point.lora_rank, r.point.seq_len, r.replicate)
            families.setdefault(same, []).append(r.point.train_steps)
        expected = sum(
            1e-3 * (length + 4) * (max(b) + 0.25 * (sum(b) - max(b)))
            for (_, length, _), b in families.items()
        )
        assert pending.gpu_seconds == pytest.approx(expected)


@pytest.fixture(scope="module")
def beliefs() -> tuple[FittedForm, ...]:
    rng = np.random.default_rng(0)
    r, n, t = np.array([(c.lora_rank, c.seq_len, c.train_steps) for c in CELLS[::2]], float).T
    delta = TRUE_LAW.predict(r, n, t) + 0.05 * rng.standard_normal(r.size)
    base = np.full(r.size, 12.0)
    data = LawData(r, n, t, delta, base, base - delta, np.arange(r.size))
    return (
        FittedForm(average_laws(data, ("ceiling",)).best, 0.7),
        FittedForm(average_laws(data, ("power",)).best, 0.3),
    )


def test_a_field_that_is_kept_up_is_the_field_of_all_pending_runs(
    beliefs: tuple[FittedForm, ...],
) -> None:
    kept = GridField(beliefs, 12.0, CELLS, TARGETS)
    # One of them was added by hand, off the grid.
    pending = [*(run.point for run in runs(12, 3)), DesignPoint(3, 100, 70)]
    pending += pending[:5]
    for n in (0, 1, 4, 13, 18, 2, 7):
        field = law_field(beliefs, 12.0).after(pending[:n])
        gains = kept.gains(Counter(pending[:n]))
        assert gains == pytest.approx(field.gains(CELLS, TARGETS), rel=1e-6)
        found = kept.information(Counter(pending[:n]))
        assert found == pytest.approx(field.information(CELLS), rel=1e-6)
        # A search that starts again must not choose otherwise: the same to the last bit.
        anew = GridField(beliefs, 12.0, CELLS, TARGETS)
        assert np.array_equal(anew.gains(Counter(pending[:n][::-1])), gains)


def test_a_history_keeps_a_field_as_long_as_it_is_believed(beliefs: tuple[FittedForm, ...]) -> None:
    history = History()
    field = history.field(beliefs, 12.0, CELLS, TARGETS)
    assert history.field(tuple(beliefs), 12.0, CELLS, TARGETS) is field
    for changed in (
        history.field(beliefs[:1], 12.0, CELLS, TARGETS),
        history.field(beliefs, 11.0, CELLS, TARGETS),
        history.field(beliefs, 11.0, CELLS, TARGETS[:1]),
    ):
        assert changed is not field
        field = changed
