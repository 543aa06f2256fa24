"""Cost calibration: a few optimiser steps of a pack, timed on this device before planning."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from statistics import median

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.model.base_model import LoadBase, load_base_model
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prefix_store import PrefixStore
from pmlray.engine.ready_pack import MakeStepper, ready_pack
from pmlray.engine.runtime.device_clock import paid_seconds
from pmlray.engine.scheduling.pack_watch import PackWatch, Tell, untold
from pmlray.engine.training.loop import PackLoop
from pmlray.live_packs import Calibration, put_calibration
from pmlray.types import Pack

# The first steps of a process compile and allocate, so they are not timed.
WARM_UP_STEPS = 2
LEAST_STEPS, MOST_STEPS, ENOUGH_SECONDS = 3, 20, 2.0
# Limit on the calibration's cost, as a share of the law's budget: many cores spend it quickly.
SPENT_SHARE = 0.02


def calibrate_pack(
    search: PreparedSearch,
    pack: Pack,
    store: Path,
    make_stepper: MakeStepper,
    prefix_store: PrefixStore | None = None,
    load_base: LoadBase = load_base_model,
    tell: Tell = untold,
) -> float:
    """Time a few optimiser steps of a pack and write their cost, but no results, to the store.

    The arguments are those of `measure_pack`. Returns wall seconds inside the timed steps.
    """
    most = SPENT_SHARE * search.spec.budget.law_seconds
    shared = (make_stepper, prefix_store, load_base, tell)
    wall, found = time_steps(search, pack, *shared, most, ENOUGH_SECONDS)
    put_calibration(store, found)
    return wall


def time_steps(
    search: PreparedSearch,
    pack: Pack,
    make_stepper: MakeStepper,
    prefix_store: PrefixStore | None = None,
    load_base: LoadBase = load_base_model,
    tell: Tell = untold,
    most: float = math.inf,
    seconds: float = math.inf,
    most_steps: int = MOST_STEPS,
) -> tuple[float, Calibration]:
    """Time a few optimiser steps of a pack; return their wall seconds and their cost.

    Nothing is stored. The arguments are those of `measure_pack`, and: most, seconds: gpu_seconds
    spent, and wall seconds of timed steps, after either of which LEAST_STEPS timed steps are
    enough; most_steps: largest number of timed steps.
    """
    watch, device = PackWatch(pack, tell), pick_device()
    ready = ready_pack(search, pack, prefix_store, load_base, watch.stage)
    watch.stage("taking a few steps to see what they cost")
    loop = PackLoop(
        ready.model,
        make_stepper(ready.model, ready.optimizer),
        ready.optimizer,
        ready.members,
        search.spec.recipe,
        search.spec.memft_rules(),
        ready.room,
    )
    began = paid_seconds(device)
    loop.admit(0)
    least = min(run.point.train_steps for run in pack.runs)
    timed, taken = Counter[int](), 0
    for step in range(min(WARM_UP_STEPS, least - 1)):
        loop.train_step(step)
        taken += 1
    loop.clock.lap(training=False)
    wall, laps = time.perf_counter(), list[float]()
    for n in range(1, most_steps + 1):
        if taken == least:
            break
        timed.update(loop.active)
        before = paid_seconds(device)
        loop.train_step(taken)
        taken += 1
        loop.clock.lap(training=True)
        laps.append(paid_seconds(device) - before)
        enough = time.perf_counter() - wall >= seconds
        if n >= LEAST_STEPS and (enough or paid_seconds(device) - began >= most):
            break
    steps = tuple((pack.runs[i].point, n) for i, n in timed.items())
    # The median: a step that captures a graph, or is taken twice to check it, costs more.
    ordinary = median(laps) * len(laps)
    found = Calibration(steps, ordinary, paid_seconds(device) - began)
    return time.perf_counter() - wall, found
