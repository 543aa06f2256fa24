"""The values that flow through pmlray: frozen, picklable, free of frameworks.

Symbols: r is `lora_rank`, l is `seq_len` (supervised target tokens), t is `train_steps` (optimiser
steps). Losses are nats per supervised token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

# Plain fine-tuning; MemFT's threshold; its window or curriculum; its window at a fixed width; its
# threshold with what is recalled left out of the batch.
Method = Literal["sft", "memft_ot", "memft_sw", "memft_fw", "memft_rd"]
Phase = Literal["law", "memft"]
METHODS: tuple[Method, ...] = get_args(Method)
Compat = Literal["mended", "paper"]
Equal = Literal["gpu_seconds", "tokens", "steps"]

PHASES: tuple[Phase, ...] = get_args(Phase)

OBSERVATION_SCHEMA = 5
# Files and folders carry these names: they must not lead anywhere else.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What a stored field must be, by its annotation; what is not here is for its reader to check.
WORDS = {"Method": METHODS, "Phase": PHASES}
# Fields that must be at least 1.
SIZES = ("lora_rank", "seq_len", "supervised_tokens", "rows", "positions")
# Errors of rebuilding an object from a file of another form; files are untrusted input.
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class DesignPoint:
    """A point of the law's design: adapter rank, supervised target tokens, optimiser steps."""

    lora_rank: int
    seq_len: int
    train_steps: int


@dataclass(frozen=True, slots=True)
class MemftRules:
    """Rules that the MemFT methods of a pack share.

    `threshold`: probability from which a token counts as recalled. `temporal`: `memft_sw` grows the
    set of records in play instead of sliding a window over each. `compat`: `paper` for the rules of
    arXiv 2605.30260 as its code has them, `mended` without their defects: a run whose tokens are
    all recalled takes no step instead of a plain one, a wider window never lowers a weight, and the
    curriculum counts steps instead of rounding epochs down to full batches. For `memft_rd`:
    `margin`, the probability from which a token leaves the batch; `recheck_epochs`, epochs
    between two looks at those that left; `equal`, what its freed steps are counted in: it goes on
    until it has spent what a run that left nothing out spends.
    """

    threshold: float = 0.5
    temporal: bool = False
    compat: Compat = "mended"
    margin: float = 0.75
    recheck_epochs: int = 16
    equal: Equal = "gpu_seconds"

    def of_method(self, method: Method) -> dict[str, Any]:
        """Return the rules that bear on one method's result."""
        names = ["compat", "threshold"]
        if method == "memft_rd":
            names += ["margin", "recheck_epochs", "equal"]
        if method == "memft_sw":
            names += ["temporal"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One adapter to train: a design point with its method and replicate.

    `run_key` is a hash of everything that determines the result. `learning_rate` replaces the
    recipe's peak rate where it is given. `why` it was chosen, in words, is no part of what it is.
    """

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
    """Capacity of an optimiser step of a pack: rows (records), and positions (tokens through the
    suffix) of all of them."""

    rows: int
    positions: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Runs that train together on one frozen base, in one Ray Train job.

    `round` counts the packs of a search from 0, in the order in which they were chosen. Runs that
    find no `room` wait until others have ended; None: there is room for all. What would take it
    beyond its `gpu_seconds` is left out, unmeasured. One that `calibrates` takes a few steps to
    tell what they cost, and measures nothing.
    """

    round: int
    runs: tuple[PlannedRun, ...]
    room: Room | None = None
    gpu_seconds: float | None = None
    calibrates: bool = False

    @property
    def pack_id(self) -> str:
        """Readable and unique within a search: the round and the first run's key."""
        kind = "calibration" if self.calibrates else "pack"
        return f"{kind}-{self.round:03d}-{self.runs[0].run_key[:8]}"


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall under greedy decoding, read off a teacher-forced pass.

    `token`: share of supervised tokens whose argmax is right. `prefix`: tokens right before the
    first error of each record, over all supervised tokens. `exact`: share of records wholly right.
    `n_stubborn`: supervised tokens with p <= 0.5.
    """

    token: float
    prefix: float
    exact: float
    n_stubborn: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished measurement; `round` and `place` say which of which pack's runs it was.

    `supervised_tokens` is the l that was measured (a set of whole records may fall short of the
    nominal `point.seq_len`). `curve` holds (step, loss) after that many optimiser steps. `token_p`
    is p of each supervised token at the end, `wrong_tokens` the indices whose argmax is wrong.
    `gpu_seconds` are device-seconds inside the loop, shared out over the pack by tokens; on a CPU
    they are its CPU seconds. `charged_steps` are the optimiser steps that they paid for: fewer than
    were taken where runs of several budgets share a trunk. `generated_match` is None when no real
    decoding was run. `control_delta_loss` is the adapter's loss reduction on fresh text of the same
    distribution, nats per token: what it learnt about the kind of text, not about the text, and
    `control_recall` the share of those records that it gets wholly right (a rule that holds for
    them too, say). `prose_delta_loss`: its loss reduction on plain English prose, below 0 where it
    harms what the base could do. Both None where they were not measured; their cost is in none of
    these fields. `grad_norm`: mean gradient norm, before clipping, over the last tenth of the steps
    before the decay. `learning_rate`: the peak rate of the run. `token_p_curve` holds (step, p of
    each supervised token) after that many steps, from step 0 to before the end, to three digits;
    empty where it was not kept, as of runs of very many tokens.
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

    @property
    def stopped_early(self) -> bool:
        """True if the run ended before its last step: nothing left to learn, or no way to it."""
        return self.curve[-1][0] < self.point.train_steps

    @property
    def delta_loss(self) -> float:
        """Loss reduction base_loss - final_loss, nats per supervised token."""
        return self.base_loss - self.final_loss

    def to_json(self) -> dict[str, Any]:
        """The stored form, with its schema version and the derived delta_loss."""
        return {"schema": OBSERVATION_SCHEMA, **asdict(self), "delta_loss": self.delta_loss}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Observation:
        """Rebuild from `to_json`'s form; one of MALFORMED when it has another."""
        fields = {k: v for k, v in stored.items() if k not in ("schema", "delta_loss")}
        fields["point"] = rebuild(DesignPoint, fields["point"])
        # Schema 1 knew no shared trunks and no order within a pack, 1 and 2 no control; what 4
        # added is None, and what 5 added empty, in all before it.
        fields.setdefault("place", 0)
        fields.setdefault("charged_steps", float(fields["point"].train_steps))
        fields["recall"] = rebuild(Recall, fields["recall"])
        fields["curve"] = tuple((int(step), float(loss)) for step, loss in fields["curve"])
        fields["token_p"] = tuple(map(float, fields["token_p"]))
        table = fields.get("token_p_curve", ())
        fields["token_p_curve"] = tuple((int(step), tuple(map(float, p))) for step, p in table)
        fields["wrong_tokens"] = tuple(map(int, fields["wrong_tokens"]))
        if not fields["curve"] or not isinstance(fields["provenance"], Mapping):
            raise ValueError("its curve is empty, or its provenance no mapping")
        return rebuild(cls, fields)


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that ended without a result, with what it cost (gpu_seconds) and why.

    `infrastructure`: machines failed it, not what it is; it is open again when its study is started
    next. `left_out`: nothing failed; its pack would have overspent with it.
    """

    run_key: str
    point: DesignPoint
    round: int
    place: int
    reason: str
    gpu_seconds: float
    infrastructure: bool = False
    left_out: bool = False
    phase: Phase = "law"


@dataclass(frozen=True, slots=True)
class PackTimes:
    """Wall time of a pack: inside optimiser steps, and from its submission to its result with
    start-up and model load. `lost_gpu_seconds`: device-seconds that faults took, each since the
    last checkpoint; they are in no run's cost."""

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


def rebuild(kind: type[T], stored: Mapping[str, Any]) -> T:
    """A dataclass from its stored fields, of which nested ones are rebuilt already.

    One of MALFORMED when a field is missing, unknown or of another type, or a name is no file's.
    """
    types = {known.name: str(known.type) for known in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _checked(name, types.get(name, ""), stored[name]) for name in stored})


def _checked(name: str, of: str, value: Any) -> Any:
    if value is None and of.endswith(" | None"):
        return None
    match of.removesuffix(" | None"):
        case "int" if type(value) is not int or (name in SIZES and value < 1):
            raise ValueError(f"{name} is {value!r}")
        case "float":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} is {value!r}, no number")
            return float(value)
        case "str" if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, no text")
        case "bool" if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}, neither true nor false")
        case "Method" | "Phase" as word if value not in WORDS[word]:
            raise ValueError(f"{name} is {value!r}, none of {', '.join(WORDS[word])}")
        case _:
            pass
    if name in ("run_key", "pack_id") and NAME.fullmatch(str(value)) is None:
        raise ValueError(f"{name} {value!r} is no name of a file")
    return value
