"""Choice of the next run: adaptive, with costs and pending runs taken into account.

A pack is chosen run by run, each counting those before it as measured: the greedy joint choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pmlray.design.acquisition import (
    LAW_RULES,
    RULES,
    Acquisition,
    Candidates,
    DesignState,
    fill_space,
)
from pmlray.design.cost import CostModel
from pmlray.design.space import Candidate, ChosenRun, DesignSpace, Replicate
from pmlray.types import DesignPoint, Family

# The initial design must not use up the budget: each of its runs gets at most an even share of a
# fifth of what is left. In replays of known laws half of it predicted no better at any spend.
START_SHARE = 0.2


@dataclass(frozen=True)
class DesignSettings:
    """Settings of an adaptive design.

    Args:
        n_initial: number of space-filling runs before a law chooses.
        validation_share: least share of the spend on space-filling runs, so that the law is also
            checked where its own uncertainty is small.
        targets: points where the law is to be known, a tuple or a list.
        acquisition: rule that chooses, `v_optimal` or a rival of it.
        seed: of the rules that draw at random.

    Example:
        >>> DesignSettings(6, 0.2, targets=[DesignPoint(16, 256, 100)]).acquisition
        'v_optimal'
    """

    n_initial: int
    validation_share: float
    targets: Sequence[DesignPoint]
    acquisition: Acquisition = "v_optimal"
    seed: int = 0

    def __post_init__(self) -> None:
        # A list is taken too, and no caller can change it later.
        object.__setattr__(self, "targets", tuple(self.targets))


def open_candidates(
    space: DesignSpace, known: DesignState, n_initial: int = 0
) -> Iterator[Candidate]:
    """Yield every open cell within the remaining budget, at its most suitable replicate.

    That is the replicate that the search has used least, unless another lets the run share the
    trunk of one that is already in the pack. Candidates come in the grid's order. They are of
    placements that can share the pack being filled, apart from the design's first `n_initial` runs,
    which are dealt out to packs once all are chosen.
    """
    whole = not known.pack or len(known.chosen) < n_initial
    kind = None if whole else known.cost.pack_kind(known.pack[0].point)
    in_pack: dict[Family, dict[Replicate, list[int]]] = {}
    for run in known.pack:
        trunks = in_pack.setdefault(run.point.family, {})
        trunks.setdefault(run.replicate, []).append(run.point.train_steps)
    shares = known.cost.decay_share is not None
    history = known.history
    for cell, balanced in history.next_replicates(space.cells, space.replicates):
        if kind is not None and known.cost.pack_kind(cell) != kind:
            continue
        trunks = in_pack.get(cell.family, {})
        best = Candidate(cell, balanced, known.cost.added(cell, trunks.get(balanced, ())))
        for replicate, budgets in trunks.items() if shares else ():
            seconds = known.cost.added(cell, budgets)
            if seconds < best.gpu_seconds and not history.took(cell, replicate):
                best = Candidate(cell, replicate, seconds)
        if best.gpu_seconds <= known.budget_left:
            yield best


def choose_run(
    space: DesignSpace, settings: DesignSettings, known: DesignState, longest: float = math.inf
) -> tuple[DesignPoint, Replicate] | None:
    """Choose the next run; None when no open cell is within the remaining budget.

    longest: gpu_seconds; a rule that weighs costs takes no longer run unless all are longer.
    """
    candidates = tuple(open_candidates(space, known, settings.n_initial))
    if not candidates:
        return None
    choice = Candidates(candidates, tuple(space.cells), tuple(settings.targets), settings.seed)
    rule = RULES[settings.acquisition]
    if settings.acquisition not in LAW_RULES:
        chosen = rule(choice, known)
        return chosen.point, chosen.replicate
    choice = _no_longer(choice, longest)
    if len(known.chosen) < settings.n_initial or not known.beliefs:
        chosen = _initial(choice, settings, known)
    elif validates(settings, known):
        chosen = fill_space(choice, known)
    else:
        chosen = rule(choice, known)
    return chosen.point, chosen.replicate


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """Limits of one of several devices, gpu_seconds: of a `pack`, and of one `run`.

    `planned`: limit of a pack for any number of devices; its first `at_least` runs are exempt.
    """

    pack: float = math.inf
    run: float = math.inf
    planned: float = math.inf
    at_least: int = 0

    def room(self, known: DesignState) -> float:
        """Return the longest that the next run of the pack being filled may take; the first run of
        a pack is limited by `run` alone."""
        if not known.pack:
            return self.run
        most = self.pack if len(known.pack) < self.at_least else min(self.pack, self.planned)
        return most - PendingSpend(known.cost, known.pack).gpu_seconds


def device_share(known: DesignState, devices: int) -> DeviceShare:
    """Return the limits that let all devices end at the same time; none for one device.

    A pack takes half of a device's share of the budget that no run has taken yet, since runs may
    take twice as long as predicted (factoring: Hummel, Schonberg and Flynn 1992, DOI
    10.1145/135226.135232). No run is longer than the average work left to a device, in which runs
    already in training count half.
    """
    if devices == 1:
        return DeviceShare()
    left = known.budget_left
    return DeviceShare(left / (2 * devices), (left + known.training / 2) / devices)


class PendingSpend:
    """Predicted cost of runs asked for together, `gpu_seconds`, with shared trunks counted once;
    updated run by run."""

    def __init__(self, cost: CostModel, runs: Iterable[ChosenRun] = ()) -> None:
        self.gpu_seconds = 0.0
        self._cost = cost
        self._trunks: dict[tuple[Family, Replicate], list[int]] = {}
        for run in runs:
            self.add(run)

    def add(self, run: ChosenRun) -> None:
        """Add a run."""
        point = run.point
        budgets = self._trunks.setdefault((point.family, run.replicate), [])
        self.gpu_seconds += self._cost.added(point, budgets)
        budgets.append(point.train_steps)


def _initial(choice: Candidates, settings: DesignSettings, known: DesignState) -> Candidate:
    left = max(1, settings.n_initial - len(known.chosen))
    limit = known.budget_left * START_SHARE / left
    seen = {run.point.placement for run in known.chosen}
    unseen = [o for o in choice.candidates if o.point.placement not in seen]
    # A law that is to choose among placements needs a run of each, whatever it costs.
    if unseen and len({o.point.placement for o in unseen}) >= left:
        choice = replace(choice, candidates=tuple(unseen))
    return fill_space(_no_longer(choice, limit), known)


def _no_longer(choice: Candidates, gpu_seconds: float) -> Candidates:
    """Return the choice without the candidates that take longer; the cheapest always stays."""
    within = tuple(
        candidate for candidate in choice.candidates if candidate.gpu_seconds <= gpu_seconds
    )
    cheapest = within or (min(choice.candidates, key=lambda candidate: candidate.gpu_seconds),)
    return replace(choice, candidates=cheapest)


def validates(settings: DesignSettings, known: DesignState) -> bool:
    """Return whether the next run fills space, because such runs have less than their share of the
    spend."""
    return known.history.fills_too_little(settings.n_initial, settings.validation_share, known.cost)
