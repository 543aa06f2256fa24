"""MemFT against plain SFT: pairs that differ in the method alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pmlray.types import DesignPoint, Method, Observation, Recall


@dataclass(frozen=True, slots=True)
class MemftPair:
    """MemFT run with the SFT run of the same point, text and seed, at equal steps."""

    point: DesignPoint
    sequence_id: int
    seed: int
    method: Method
    sft: Observation
    memft: Observation

    def to_json(self) -> dict[str, Any]:
        """Return both runs' recall, and the keys under which they are stored."""
        return {
            "method": self.method,
            "point": self.point.to_json(),
            "sequence_id": self.sequence_id,
            "seed": self.seed,
            "sft": _recall(self.sft),
            "memft": _recall(self.memft),
        }


def memft_pairs(observations: Sequence[Observation]) -> tuple[MemftPair, ...]:
    """Pair every MemFT observation with its SFT run; those without one are left out.

    An SFT run of the law is a partner unless it stopped early: both must have had the same steps.
    """
    plain = {
        (o.point, o.sequence_id, o.seed): o
        for o in observations
        if o.method == "sft" and not o.stopped_early
    }
    pairs = []
    for o in observations:
        partner = plain.get((o.point, o.sequence_id, o.seed))
        if o.method != "sft" and partner is not None:
            pairs.append(MemftPair(o.point, o.sequence_id, o.seed, o.method, partner, o))
    return tuple(sorted(pairs, key=lambda p: (p.point, p.sequence_id, p.seed, p.method)))


def _recall(o: Observation) -> dict[str, Any]:
    recall: Recall = o.recall
    return {
        "run_key": o.run_key,
        "exact_recall": recall.exact,
        "prefix_recall": recall.prefix,
        "token_recall": recall.token,
        "stubborn_tokens": recall.n_stubborn,
        "final_loss": o.final_loss,
        "gpu_seconds": o.gpu_seconds,
    }
