"""Fakes with real behaviour: a runner whose measurements come from a known law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pmlray.config.prepared_search import PreparedSearch
from pmlray.law import CeilingLaw
from pmlray.live_packs import LivePack
from pmlray.ports import ObservationStore
from pmlray.study.search.plan import first_cost
from pmlray.study.search.replayed_placements import replayed_place
from pmlray.types import (
    FailedRun,
    Observation,
    Pack,
    PackResult,
    PackTimes,
    PlannedRun,
    Recall,
)

TRUE_LAW = CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 12.0)


def observe(
    run: PlannedRun,
    round_: int,
    place: int,
    noise: float,
    seconds_per_token: float,
    law_rank: float | None = None,
) -> Observation:
    """What a run of the known law measures, at its own rank or another; noise depends on the run
    alone."""
    rng = np.random.default_rng(int(run.run_key, 16) % 2**32)
    point = run.point
    base = 12.0 + 0.02 * run.sequence_id
    law = TRUE_LAW.predict(law_rank or point.lora_rank, point.seq_len, point.train_steps)
    delta = min(float(law) + noise * rng.standard_normal(), base)
    p = float(np.exp(-(base - delta)))
    return Observation(
        run_key=run.run_key,
        point=point,
        task="long_context",
        method=run.method,
        seed=run.seed,
        sequence_id=run.sequence_id,
        phase=run.phase,
        round=round_,
        place=place,
        supervised_tokens=point.seq_len,
        base_loss=base,
        final_loss=base - delta,
        recall=Recall(p, p, float(p > 0.5), 0 if p > 0.5 else point.seq_len),
        curve=((0, base), (point.train_steps, base - delta)),
        token_p=(p,) * point.seq_len,
        wrong_tokens=(),
        generated_match=None,
        gpu_seconds=seconds_per_token * point.seq_len * point.train_steps,
        charged_steps=float(point.train_steps),
        tokens_per_second=1.0 / seconds_per_token,
        peak_memory_bytes=1,
        provenance={"model": "synthetic"},
        control_delta_loss=0.1 * delta,
        learning_rate=run.learning_rate,
    )


class SyntheticRunner:
    """A PackRunner on a known law; `fails` says which runs leave no observation, and
    `infrastructure` whether that was the machines' doing."""

    def __init__(
        self,
        store: ObservationStore,
        *,
        noise: float = 0.02,
        seconds_per_token: float = 1e-3,
        fails: Callable[[PlannedRun], bool] = lambda run: False,
        infrastructure: bool = False,
    ) -> None:
        self._store, self._noise, self._seconds = store, noise, seconds_per_token
        self._fails, self._infrastructure = fails, infrastructure
        self.ran: list[str] = []

    def run(self, pack: Pack) -> PackResult:
        done, failed = [], []
        for place, run in enumerate(pack.runs):
            self.ran.append(run.run_key)
            if self._fails(run):
                failure = FailedRun(
                    run.run_key,
                    run.point,
                    pack.round,
                    place,
                    "made to fail",
                    1.0,
                    self._infrastructure,
                )
                self._store.put_failure(failure)
                failed.append(failure)
                continue
            observation = self._observe(run, pack.round, place)
            self._store.put(observation)
            done.append(observation)
        times = PackTimes(pack.pack_id, pack.round, 0.8, 1.0)
        return PackResult(pack, tuple(done), tuple(failed), times)

    def _observe(self, run: PlannedRun, round_: int, place: int) -> Observation:
        return observe(run, round_, place, self._noise, self._seconds)


class PlacedRunner(SyntheticRunner):
    """A SyntheticRunner of a search with several placements: of each a parameter is worth so many
    of the law's, which has `law_params` of them a rank, and a run takes work by its cost model."""

    def __init__(
        self,
        search: PreparedSearch,
        store: ObservationStore,
        worths: Mapping[str, float],
        *,
        law_params: float = 128.0,
        noise: float = 0.02,
    ) -> None:
        super().__init__(store, noise=noise)
        self._search, self._worths, self._params = search, worths, law_params
        self._cost = first_cost(search, gpu=False)

    def _observe(self, run: PlannedRun, round_: int, place: int) -> Observation:
        params = run.point.lora_rank * self._search.params_per_rank_of(run.point)
        worth = params * self._worths[str(run.point.placement)] / self._params
        measured = observe(run, round_, place, self._noise, self._seconds, worth)
        return replace(
            measured,
            gpu_seconds=self._cost.predict(run.point),
            provenance={**measured.provenance, **replayed_place(self._search, run.point)},
        )


class MemoryTracker:
    """A Tracker that remembers what it was told."""

    uri = "memory:"

    def __init__(self) -> None:
        self.observed: list[str] = []
        self.laws: list[tuple[dict[str, float], float]] = []
        self.stood: dict[str, float] = {}
        self.lived: list[dict[str, int]] = []
        self.status: str | None = None

    def observe(self, observations: Iterable[Observation]) -> None:
        self.observed.extend(o.run_key for o in observations)

    def law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        self.laws.append((dict(metrics), gpu_seconds))

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        self.stood = dict(metrics)

    def live(self, runs: Mapping[str, PlannedRun], packs: Sequence[LivePack]) -> None:
        self.lived.append({live.run_key: live.steps for pack in packs for live in pack.runs})

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        self.status = status
