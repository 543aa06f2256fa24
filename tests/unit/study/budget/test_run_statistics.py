"""What packs have measured, kept up, beside the same from all runs at once."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from pmlray.design import CostModel
from pmlray.design.packing import LEAST_RUNS, Load, worthwhile_runs
from pmlray.study.budget.packs import known_device
from pmlray.study.budget.run_statistics import Measured
from pmlray.types import DesignPoint, Observation, PackTimes, PlannedRun
from tests.fakes import observe

COST = CostModel(1e-3, prompt_tokens=3, batch_records=None)


def packs(n: int) -> list[tuple[list[Observation], PackTimes]]:
    rng, made = np.random.default_rng(0), []
    for round_ in range(n):
        runs = [
            PlannedRun(
                DesignPoint(*map(int, rng.integers(1, 60, 3))), "sft", 0, 0,
                "memft" if round_ % 3 == 2 else "law", f"{round_:08x}{place:08x}",
            )
            for place in range(rng.integers(1, 6))
        ]  # fmt: skip
        of_pack = [
            replace(observe(r, round_, place, 0.0, float(rng.uniform(1e-3, 2e-3))),
                    peak_memory_bytes=int(rng.integers(1, 10**9)))
            for place, r in enumerate(runs)
        ]  # fmt: skip
        seconds = sum(o.gpu_seconds for o in of_pack)
        made.append((of_pack, PackTimes(f"pack-{round_}", round_, seconds, seconds + 2.0)))
    return made


def test_it_says_after_every_pack_what_all_of_them_say() -> None:
    measured = Measured(COST, [], [])
    assert measured.device() is None and measured.runs_to_ask(1) == LEAST_RUNS
    known: list[Observation] = []
    times: list[PackTimes] = []
    for of_pack, taken in packs(12):
        measured.add(of_pack, taken)
        # What comes back once more, as of a pack that was cut off, counts once.
        measured.add(of_pack[:1], replace(taken, round=999))
        known += of_pack
        times.append(taken)
        law = [o for o in known if o.phase == "law"]
        assert measured.plain == law and list(measured.observations.values()) == known
        assert measured.gpu_seconds == pytest.approx(sum(o.gpu_seconds for o in known))
        assert measured.spent["law"] == pytest.approx(sum(o.gpu_seconds for o in law))
        cost = COST.learn((o.point, o.charged_steps, o.gpu_seconds) for o in known)
        assert measured.cost() == cost
        device = known_device(known, times, cost)
        assert measured.device() == device
        run = Load(1, 1, round(median(o.point.seq_len + 3 for o in law)), 0.0)
        steps = round(median(o.point.train_steps for o in law))
        for n in (1, 4):
            assert measured.runs_to_ask(n) == worthwhile_runs(device, run, steps, len(law), n)
        anew = Measured(COST, known, times)
        assert anew.cost() == cost and anew.device() == device
