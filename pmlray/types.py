"""Value types of pmlray: frozen, picklable, independent of frameworks.

Symbols: r is `lora_rank`, l is `seq_len` (supervised target tokens), t is `train_steps` (optimiser
steps). Losses are nats per supervised token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pmlray.rebuild import rebuild, taken_apart

# Plain fine-tuning; MemFT's threshold; its window or curriculum; its window at a fixed width; its
# threshold with what is recalled left out of the batch.
Method = Literal["sft", "memft_ot", "memft_sw", "memft_fw", "memft_rd"]
Phase = Literal["law", "memft"]
Schedule = Literal["warmup_constant_decay", "linear"]
METHODS: tuple[Method, ...] = get_args(Method)
Compat = Literal["mended", "paper"]
Equal = Literal["gpu_seconds", "tokens", "steps"]
PHASES: tuple[Phase, ...] = get_args(Phase)

OBSERVATION_SCHEMA = 6
# Placement, rank and length.
Family = tuple[str | None, int, int]


@dataclass(frozen=True, slots=True, order=True, repr=False)
class DesignPoint:
    """Point of the law's design.

    Args:
        lora_rank: adapter rank r.
        seq_len: length l, supervised target tokens.
        train_steps: optimiser steps t.
        placement: name of the adapter's placement; None in a study that has only one.
        schedule: of the learning rate, where it is not the recipe's, as in some comparisons.

    Example:
        >>> point = DesignPoint(lora_rank=8, seq_len=256, train_steps=150)
    """

    lora_rank: int
    seq_len: int
    train_steps: int
    placement: str | None = None
    schedule: Schedule | None = None

    @property
    def family(self) -> Family:
        """What points that differ in nothing but their steps share."""
        return self.placement, self.lora_rank, self.seq_len

    def to_json(self) -> dict[str, Any]:
        """Return the stored form, with a placement and a schedule only where the point has one."""
        return taken_apart(self)

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self.to_json().items())
        return f"DesignPoint({', '.join(given)})"


@dataclass(frozen=True, slots=True)
class MemftRules:
    """Rules that the MemFT methods of a pack share. `threshold`: probability from which a token
    counts as recalled. `temporal`: `memft_sw` grows the set of trained records instead of sliding a
    window over each. `compat`: `paper` for the rules of arXiv 2605.30260 as its code has them,
    `mended` without their defects: a run whose tokens are all recalled takes no step instead of a
    plain one, a wider window never lowers a weight, and the curriculum counts steps instead of
    rounding epochs down to full batches. For `memft_rd`: `margin`, the probability from which a
    token leaves the batch; `recheck_epochs`, epochs between two checks of those that left; `equal`,
    the measure in which its spend matches that of a full run."""

    threshold: float = 0.5
    temporal: bool = False
    compat: Compat = "mended"
    margin: float = 0.75
    recheck_epochs: int = 16
    equal: Equal = "gpu_seconds"

    def of_method(self, method: Method) -> dict[str, Any]:
        """Return the rules that affect one method's result."""
        names = ["compat", "threshold"]
        if method == "memft_rd":
            names += ["margin", "recheck_epochs", "equal"]
        if method == "memft_sw":
            names += ["temporal"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """Adapter to train: a design point with its method and replicate. `run_key`: hash of all that
    determines the result; `learning_rate`: peak rate in place of the recipe's; `why`: the reason
    for the choice in words, ignored by equality."""

    point: DesignPoint
    method: Method
    sequence_id: int
    seed: int
    phase: Phase
    run_key: str
    learning_rate: float | None = None
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Room:
    """Capacity of a pack's step: rows (records) and positions (tokens through the suffix)."""

    rows: int
    positions: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Runs that train together on one frozen base, in one Ray Train job.

    `round` counts a search's packs from 0, in the order chosen. Runs beyond the `room` start when
    others have ended; None: no limit. Runs that would exceed the pack's `gpu_seconds` are left out,
    unmeasured. One that `calibrates` takes a few steps to measure their cost and nothing else.
    """

    round: int
    runs: tuple[PlannedRun, ...]
    room: Room | None = None
    gpu_seconds: float | None = None
    calibrates: bool = False

    @property
    def pack_id(self) -> str:
        """Readable name, unique within a search: the round and the first run's key."""
        kind = "calibration" if self.calibrates else "pack"
        return f"{kind}-{self.round:03d}-{self.runs[0].run_key[:8]}"


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall under greedy decoding, read off a teacher-forced pass.

    `token`: share of supervised tokens whose argmax is right. `prefix`: tokens right before the
    first error of each record, over all supervised tokens. `exact`: share of records wholly right,
    with the end after them where one was trained. `answered`: share of records whose target is
    wholly right, whether or not its end follows; None where no end was trained, so that `exact` is
    that share. `n_stubborn`: supervised tokens with p <= 0.5. The end counts in `exact` alone.
    """

    token: float
    prefix: float
    exact: float
    n_stubborn: int
    answered: float | None = None

    @property
    def right_answers(self) -> float:
        """Share of records whose target is wholly right, whether or not it ends there."""
        return self.exact if self.answered is None else self.answered


@dataclass(frozen=True, slots=True)
class Observation:
    """Result of one finished run.

    Args:
        round, place: pack of the search, and the run's place in it.
        supervised_tokens: measured l; whole records may fall short of `point.seq_len`, and the
            ends that follow them do not count.
        base_loss, final_loss: without and with the adapter, nats per supervised token.
        curve: (step, loss) after that many optimiser steps.
        token_p, wrong_tokens: final p of each supervised token; indices whose argmax is wrong.
        generated_match: None when no real decoding was run.
        gpu_seconds: device-seconds in the loop (CPU seconds on a CPU), split by tokens over a pack.
        charged_steps: steps they paid for, fewer than were taken where budgets share a trunk.
        control_delta_loss, control_recall: loss reduction (nats per token) and share of records
            wholly right on fresh text of the same distribution: what is learnt of its kind.
        prose_delta_loss: loss reduction on plain English prose, below 0 where it does harm. It and
            the controls are None where unmeasured; their cost is in none of these fields.
        grad_norm: mean before clipping, over the last tenth of the steps before the decay.
        learning_rate: the run's peak rate.
        end_p: final p of the end that follows each record; empty where no end was trained.
        token_p_curve: (step, p of each supervised token, three digits) from step 0 to before the
            end; empty where it was not kept, as with very many tokens.

    Example:
        >>> run = Search.load("runs/smoke").observations()[0]
        >>> again = Observation.from_json(run.to_json())
    """

    run_key: str
    point: DesignPoint
    task: str
    method: Method
    seed: int
    sequence_id: int
    phase: Phase
    round: int
    place: int
    supervised_tokens: int
    base_loss: float
    final_loss: float
    recall: Recall
    curve: tuple[tuple[int, float], ...]
    token_p: tuple[float, ...]
    wrong_tokens: tuple[int, ...]
    generated_match: bool | None
    gpu_seconds: float
    charged_steps: float
    tokens_per_second: float
    peak_memory_bytes: int
    provenance: Mapping[str, Any]
    control_delta_loss: float | None = None
    control_recall: float | None = None
    prose_delta_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    token_p_curve: tuple[tuple[int, tuple[float, ...]], ...] = ()
    end_p: tuple[float, ...] = ()

    @property
    def stopped_early(self) -> bool:
        """True where a run ended before its last step: nothing left to learn, or no way to."""
        return self.curve[-1][0] < self.point.train_steps

    @property
    def delta_loss(self) -> float:
        """Loss reduction base_loss - final_loss, nats per supervised token."""
        return self.base_loss - self.final_loss

    def to_json(self) -> dict[str, Any]:
        """Return the stored form, with its schema version and the derived delta_loss."""
        return {"schema": OBSERVATION_SCHEMA, **taken_apart(self), "delta_loss": self.delta_loss}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Observation:
        """Rebuild from the form of `to_json`; raises one of MALFORMED on any other, and on that of
        a newer version, whose fields may mean something else."""
        if (schema := int(stored.get("schema", 0))) > OBSERVATION_SCHEMA:
            raise ValueError(
                f"of schema {schema}, and this pmlray knows those up to {OBSERVATION_SCHEMA}"
            )
        fields = {k: v for k, v in stored.items() if k not in ("schema", "delta_loss")}
        fields["point"] = rebuild(DesignPoint, fields["point"])
        # Schema 1 had no shared trunks and no order within a pack, 1 and 2 no control; before 4,
        # the fields that it added are None, and before 5 and 6, those that they added are empty:
        # before 6 no end was trained.
        fields.setdefault("place", 0)
        fields.setdefault("charged_steps", float(fields["point"].train_steps))
        fields["recall"] = rebuild(Recall, fields["recall"])
        fields["curve"] = tuple((int(step), float(loss)) for step, loss in fields["curve"])
        fields["token_p"] = tuple(map(float, fields["token_p"]))
        fields["end_p"] = tuple(map(float, fields.get("end_p", ())))
        table = fields.get("token_p_curve", ())
        fields["token_p_curve"] = tuple((int(step), tuple(map(float, p))) for step, p in table)
        fields["wrong_tokens"] = tuple(map(int, fields["wrong_tokens"]))
        if not fields["curve"] or not isinstance(fields["provenance"], Mapping):
            raise ValueError("its curve is empty, or its provenance no mapping")
        return rebuild(cls, fields)


@dataclass(frozen=True, slots=True)
class FailedRun:
    """Run that ended without a result, with its cost (gpu_seconds) and the reason.
    `infrastructure`: a machine failed, not the run, which is open again when its study restarts.
    `left_out`: nothing failed; the run would have overspent its pack's limit.
    `bad_base`: the base was refused when it was loaded, for this run and any other."""

    run_key: str
    point: DesignPoint
    round: int
    place: int
    reason: str
    gpu_seconds: float
    infrastructure: bool = False
    left_out: bool = False
    phase: Phase = "law"
    bad_base: bool = False


@dataclass(frozen=True, slots=True)
class PackTimes:
    """Wall time of a pack: in optimiser steps, and from submission to result with all start-up.
    `lost_gpu_seconds`: lost to faults, each since the last checkpoint; in no run's cost."""

    pack_id: str
    round: int
    training_seconds: float
    wall_seconds: float
    lost_gpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PackResult:
    """Result of one pack: its observations, its failures and its times."""

    pack: Pack
    observations: tuple[Observation, ...]
    failed: tuple[FailedRun, ...]
    times: PackTimes
