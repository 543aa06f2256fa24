"""The points a law is fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmlray.errors import DataError
from pmlray.law.observed_placements import observed_placements
from pmlray.law.placements import Placement, in_order
from pmlray.types import Observation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
# Rounding of a final loss of zero, in float32 and tables of seven digits, as a share of its fall.
ROUNDING = 1e-5


# A run whose loss fell by more than this share of the base loss is saturated: it shows only that
# the law is no lower.
SATURATED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class LawData:
    """Points of a law, one entry an observation; all arrays have shape (N,).

    Args:
        lora_rank: rank r, at least 1.
        seq_len: length l, supervised tokens, at least 1.
        train_steps: optimiser steps t; 0 when unknown.
        delta_loss: loss reduction, nats per supervised token.
        base_loss: loss without the adapter, nats per supervised token; NaN when unknown.
        final_loss: loss with the adapter, nats per supervised token; NaN when unknown.
        cluster: one id per (sequence_id, seed).
        placement: each point's place in `placements`; None where all points share one.
        placements: where the adapters sit, each name once, the reference first.
        notes: remarks on the input (unused columns, repeats that count once); ignored by equality
            and kept by subsets.

    Raises:
        DataError: unequal shapes, a placement that is not given, a delta_loss that is not finite, a
            base_loss <= 0, a negative train_steps, or a rank or length below 1.

    Example:
        >>> import numpy as np
        >>> r, l, t = np.array([[1, 64, 100], [4, 64, 100], [4, 256, 100]], dtype=float).T
        >>> delta, base = np.array([1.1, 2.3, 0.9]), np.full(3, 4.0)
        >>> data = LawData(r, l, t, delta, base, base - delta, cluster=np.zeros(3, dtype=np.int64))
        >>> len(data), data.several_placements
        (3, False)
    """

    lora_rank: FloatArray
    seq_len: FloatArray
    train_steps: FloatArray
    delta_loss: FloatArray
    base_loss: FloatArray
    final_loss: FloatArray
    cluster: IntArray
    placement: IntArray | None = None
    placements: tuple[Placement, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if {array.shape for array in self._arrays().values()} != {self.lora_rank.shape}:
            raise DataError("the arrays of LawData must all have the same shape (N,)")
        if self.placement is None and len(self.placements) > 1:
            raise DataError("points of several placements must say which of them is theirs")
        if (
            self.placement is not None
            and not np.isin(self.placement, np.arange(len(self.placements))).all()
        ):
            raise DataError("each point's placement must be a place in LawData's placements")
        for i in map(int, np.flatnonzero(~self._usable())):
            check_point(
                f"point {i}",
                float(self.lora_rank[i]),
                float(self.seq_len[i]),
                float(self.train_steps[i]),
                float(self.delta_loss[i]),
                float(self.base_loss[i]),
            )

    def _arrays(self) -> dict[str, FloatArray | IntArray]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def _usable(self) -> BoolArray:
        """Return the points (N,) that `check_point` accepts, for all points at once."""
        known = np.stack([self.lora_rank, self.seq_len, self.train_steps, self.delta_loss])
        sizes = (self.lora_rank >= 1) & (self.seq_len >= 1) & (self.train_steps >= 0)
        base = ~(self.base_loss <= 0) & ~np.isinf(self.base_loss)
        return np.isfinite(known).all(axis=0) & sizes & base

    def __len__(self) -> int:
        return self.lora_rank.size

    def subset(self, mask: BoolArray | IntArray) -> LawData:
        """Return the points that a boolean mask (N,) or an index array selects."""
        chosen: dict[str, Any] = {name: array[mask] for name, array in self._arrays().items()}
        return LawData(**chosen, placements=self.placements, notes=self.notes)

    def placed(self, of_points: Sequence[Placement], beside: Sequence[Placement] = ()) -> LawData:
        """Return the same points with the placement of each.

        beside: placements that may have no points, such as others of a design: what they are worth
        is then told from their kin. DataError where two placements share a name.
        """
        placements = in_order(of_points, beside)
        place = {placement: at for at, placement in enumerate(placements)}
        index = np.array([place[placement] for placement in of_points], dtype=np.int64)
        return replace(self, placement=index, placements=placements)

    @property
    def several_placements(self) -> bool:
        """True where points of more than one placement make one law."""
        return self.placement is not None and len(self.placements) > 1

    @property
    def plain_rank(self) -> FloatArray:
        """Ranks (N,) of the reference placement that have as many parameters as each point's
        adapter; its own rank where there is one placement."""
        if self.placement is None or not self.several_placements:
            return self.lora_rank
        per_rank = np.array([placement.params_per_rank for placement in self.placements])
        return self.lora_rank * (per_rank / per_rank[0])[self.placement]

    def cells(self) -> IntArray:
        """Return the design-cell id of each point, shape (N,): equal where (r, l, t) and the
        placement are equal."""
        axes = [self.lora_rank, self.seq_len, self.train_steps]
        axes += [] if self.placement is None else [self.placement.astype(float)]
        design = np.stack(axes, axis=1)
        return np.unique(design, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def law_data(observations: Iterable[Observation]) -> LawData:
    """Collect the points of a law from observations; l is `supervised_tokens`.

    Adapters that sat in several places, by their provenance, make one law of several placements.
    The SFT runs of the MemFT comparison are left out, so that a store always yields the points that
    its search fitted. A run_key that occurs twice with the same values counts once, and a note says
    so.

    Args:
        observations: of a search, as `Search.observations` gives them.

    Returns:
        The points of the law's phase, one a run_key.

    Raises:
        DataError: names the run_key of a point that cannot be used, that occurs twice with
            different values, or that is of another task or base than the first.

    Example:
        >>> points = law_data(Search.load("runs/smoke").observations())
        >>> len(points), fit_law(points)
        (12, LawSummary(...))
    """
    by_key: dict[str, Observation] = {}
    repeats: list[str] = []
    for o in observations:
        if o.phase != "law":
            continue
        check_observation(f"observation {o.run_key}", o)
        if o.run_key in by_key:
            repeats.append(o.run_key)
        first = by_key.setdefault(o.run_key, o)
        _check_alike(next(iter(by_key.values())), o)
        if (first.delta_loss, first.final_loss) != (o.delta_loss, o.final_loss):
            raise DataError(
                f"run_key {o.run_key} comes twice with different values, delta_loss"
                f" {first.delta_loss:g} and {o.delta_loss:g} nats: keep the one to be believed"
            )
    notes: tuple[str, ...] = ()
    if repeats:
        notes = (
            f"{len(repeats)} of {len(by_key) + len(repeats)} observations are repeats (the first is"
            f" of run_key {repeats[0]}) and count once, as a repeat is no new evidence: give a run"
            " of its own its own run_key",
        )
    return _from_observations(list(by_key.values()), notes)


def _check_alike(first: Observation, o: Observation) -> None:
    """Raise DataError where two observations cannot be of one law."""
    for what, own, other in (
        ("task", first.task, o.task),
        ("base model", first.provenance.get("model"), o.provenance.get("model")),
        ("start", _start(first), _start(o)),
    ):
        if own != other:
            raise DataError(
                f"run_key {o.run_key} is of the {what} {other}, and {first.run_key} of {own}: they"
                " have no law in common; give the runs of one of them"
            )


def _start(o: Observation) -> str:
    """Return what an adapter began with, in words."""
    found: Any = o.provenance.get("from_adapter")
    if found is None:
        return "from scratch"
    try:
        return f"from the adapter of SHA-256 {found['sha256']}"
    except (LookupError, TypeError) as error:
        raise DataError(
            f"run_key {o.run_key}: from_adapter in its provenance cannot be read ({error!r})"
        ) from error


def informative_points(data: LawData) -> BoolArray:
    """Return the points (N,) that are not saturated, and all whose base loss is not known."""
    saturated = data.delta_loss > SATURATED_SHARE * data.base_loss
    return ~saturated


def check_point(
    where: str, rank: float, length: float, steps: float, delta: float, base: float
) -> None:
    """Raise DataError, its message beginning with `where`, when a point cannot be used."""
    if not (math.isfinite(rank) and rank >= 1 and math.isfinite(length) and length >= 1):
        raise DataError(f"{where}: rank {rank:g} and length {length:g} must both be at least 1")
    if not (math.isfinite(steps) and steps >= 0):
        raise DataError(f"{where}: train_steps is {steps:g}, expected 0 (unknown) or more")
    if not math.isfinite(delta):
        raise DataError(f"{where}: delta_loss is {delta}, expected a finite number of nats")
    if base <= 0 or math.isinf(base):
        raise DataError(f"{where}: base_loss is {base}, expected nats per token above 0")


def check_fall(where: str, delta: float, base: float, final: float) -> None:
    """Raise DataError, its message beginning with `where`, when a loss fell by more than it was.

    NaN stands for an unknown loss. `check_point` does not include this check, since laws are also
    fitted to points drawn with noise around a law.
    """
    if delta > base * (1 + ROUNDING):
        raise DataError(
            f"{where}: delta_loss {delta:.10g} is above the base loss {base:.10g} nats, and a loss"
            " cannot fall by more than it was: mend the row, or the base loss, and give both in"
            " nats per token"
        )
    if final < -ROUNDING * abs(delta):
        raise DataError(
            f"{where}: final_loss {final:.10g} nats is below zero, which no loss can be: mend the"
            " row"
        )


def check_observation(where: str, o: Observation) -> None:
    """Raise DataError, its message beginning with `where`, when an observation cannot be used."""
    point = o.point
    check_point(
        where, point.lora_rank, o.supervised_tokens, point.train_steps, o.delta_loss, o.base_loss
    )


def _from_observations(kept: Sequence[Observation], notes: tuple[str, ...]) -> LawData:
    data = _of_one_placement(kept, notes)
    placements = observed_placements(kept)
    return data if placements is None else data.placed(placements)


def _of_one_placement(kept: Sequence[Observation], notes: tuple[str, ...]) -> LawData:
    replicates = sorted({(o.sequence_id, o.seed) for o in kept})
    ids = {replicate: i for i, replicate in enumerate(replicates)}
    return LawData(
        lora_rank=np.array([o.point.lora_rank for o in kept], dtype=float),
        seq_len=np.array([o.supervised_tokens for o in kept], dtype=float),
        train_steps=np.array([o.point.train_steps for o in kept], dtype=float),
        delta_loss=np.array([o.delta_loss for o in kept], dtype=float),
        base_loss=np.array([o.base_loss for o in kept], dtype=float),
        final_loss=np.array([o.final_loss for o in kept], dtype=float),
        cluster=np.array([ids[o.sequence_id, o.seed] for o in kept], dtype=np.int64),
        notes=notes,
    )
