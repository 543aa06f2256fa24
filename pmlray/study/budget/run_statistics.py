"""Statistics of a search's runs so far, updated as packs come back.

Whatever is asked of all of them is not worked out from thousands of runs for every pack.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from statistics import median

from pmlray.design import CostModel
from pmlray.design.packing import (
    LEAST_RUNS,
    Device,
    Load,
    PackUse,
    learn_device,
    worthwhile_runs,
)
from pmlray.study.budget.packs import pack_use
from pmlray.types import Observation, PackTimes, Phase


class Measured:
    """Observations by run_key, those of the law in `plain`, and what both cost.

    first_cost: the cost model before anything was measured.
    """

    def __init__(
        self,
        first_cost: CostModel,
        observations: Iterable[Observation],
        times: Iterable[PackTimes],
    ) -> None:
        self.observations: dict[str, Observation] = {}
        self.plain: list[Observation] = []
        self.spent: dict[Phase, float] = {"law": 0.0, "memft": 0.0}
        self._first_cost = first_cost
        self._seconds = self._tokens = 0.0
        self._of_round: dict[int, list[Observation]] = {}
        self._uses: list[PackUse] = []
        # Rows and positions of a step, steps, and ranks of the law's runs, ascending.
        self._sizes: tuple[list[float], ...] = ([], [], [], [])
        self._device: tuple[int, Device | None] = (0, None)
        self._keep(observations)
        for of_pack in times:
            self._weigh(of_pack)

    def add(self, observations: Sequence[Observation], times: PackTimes) -> None:
        """Add the observations and times of a pack."""
        self._keep(observations)
        self._weigh(times)

    def charge(self, phase: Phase, gpu_seconds: float) -> None:
        """Add spend that gave no observation."""
        self.spent[phase] += gpu_seconds

    def calibrate(self, first_cost: CostModel) -> None:
        """Replace the cost model used before anything is measured."""
        self._first_cost = first_cost

    @property
    def gpu_seconds(self) -> float:
        """Spend in all, gpu_seconds."""
        return sum(self.spent.values())

    def cost(self) -> CostModel:
        """Return the cost model at the measured rate."""
        return self._first_cost.at_rate(self._seconds, self._tokens)

    def device(self) -> Device | None:
        """Return the device's speed and memory by the packs so far; None before one has ended."""
        if self._device[0] != len(self._uses):
            self._device = (len(self._uses), learn_device(self._uses))
        return self._device[1]

    def runs_to_ask(self, n_devices: int) -> int:
        """Return the number of runs that the next adaptive pack should have."""
        if not self.plain:
            return LEAST_RUNS
        rows, positions, steps, rank = (round(median(sizes)) for sizes in self._sizes)
        typical = Load(1, rows, positions, 0.0, rank)
        return worthwhile_runs(self.device(), typical, steps, len(self.plain), n_devices)

    def _keep(self, observations: Iterable[Observation]) -> None:
        for o in observations:
            if o.run_key in self.observations:
                continue
            self.observations[o.run_key] = o
            self.spent[o.phase] += o.gpu_seconds
            self._seconds += o.gpu_seconds
            self._tokens += o.charged_steps * self._first_cost.work_per_step(o.point)
            self._of_round.setdefault(o.round, []).append(o)
            if o.phase == "law":
                self.plain.append(o)
                cost, point = self._first_cost, o.point
                of_step = (cost.rows_per_step(point), cost.tokens_per_step(point))
                own = (*of_step, point.train_steps, point.lora_rank)
                for sizes, size in zip(self._sizes, own, strict=True):
                    insort(sizes, size)

    def _weigh(self, times: PackTimes) -> None:
        if of_pack := self._of_round.get(times.round):
            self._uses.append(pack_use(of_pack, times, self._first_cost))
