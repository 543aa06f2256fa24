"""Result of a sizing: the adapter, what it recalls, and what its rank was chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmlray.notebook_html import facts_html
from pmlray.study.sizing.card import describe_answer
from pmlray.study.sizing.decoded_records import DecodedRecords


@dataclass(frozen=True, slots=True)
class SizedBy:
    """Choice of a rank before its adapter is trained.

    `basis`: what decided, such as the law's bound (`law`) or a run of its search (`measured`).
    `law_lora_rank`: the law's estimate; `low` and `high` its one-sided bounds at `confidence`; None
    where no rank is enough. `law_status` of a law of `law_n_obs` runs.
    """

    lora_rank: int
    basis: str
    law_lora_rank: float | None
    low: float | None
    high: float | None
    confidence: float
    law_status: str
    law_n_obs: int


@dataclass(frozen=True, repr=False)
class SizedAdapter:
    """Adapter that holds a set of records, checked by greedy decoding.

    card: content of its card, as JSON types; decoded: the answer to every record; out: the folder
    of all results.

    Example:
        >>> facts = [{"query": f"Room {n}:", "target": f" {7 * n + 1000}"} for n in range(8)]
        >>> asked = {"recall": 0.75, "steps": 200, "max_rank": 32}
        >>> found = size(facts, "tiny-random-llama", out="runs/rooms", **asked)  # trains on Ray
        >>> found.lora_rank, found.exact_recall, found.sized.basis
        (6, 1.0, 'law')
    """

    card: dict[str, Any]
    decoded: DecodedRecords
    out: Path

    def __repr__(self) -> str:
        found = f"rank {self.lora_rank} recalls {self.decoded.n_right}"
        return f"SizedAdapter({found} of {len(self.decoded.pairs)}, out={str(self.out)!r})"

    def _repr_html_(self) -> str:
        told = {
            "records recalled": f"{self.decoded.n_right} of {len(self.decoded.pairs)}",
            "wanted": f"{self.card['recall']['wanted']:.4g}",
            "sized beforehand": describe_answer(self.card["sized"]),
            "adapter": self.adapter_folder,
        }
        return facts_html(f"adapter of rank {self.lora_rank}", told)

    @property
    def exact_recall(self) -> float:
        """Share of the records recalled word for word."""
        return self.decoded.exact_recall

    @property
    def sized(self) -> SizedBy:
        """What the rank was chosen by, before the adapter was trained."""
        found = self.card["sized"]
        names = ("lora_rank", "basis", "law_lora_rank", "confidence", "law_status", "law_n_obs")
        low, high = found["interval"]
        return SizedBy(**{name: found[name] for name in names}, low=low, high=high)

    @property
    def gpu_seconds(self) -> float:
        """gpu_seconds spent on the law and on adapters beside it."""
        cost = self.card["cost"]
        return float(cost["search_gpu_seconds"] + cost["training_gpu_seconds"])

    @property
    def lora_rank(self) -> int:
        """Rank of the adapter."""
        return int(self.card["adapter"]["lora_rank"])

    @property
    def reached(self) -> bool:
        """True if the wanted share of the records is recalled word for word."""
        return bool(self.card["recall"]["reached"])

    @property
    def adapter_folder(self) -> Path:
        """Folder of the adapter, its card and the records that it does not recall."""
        return self.out / "adapter"

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only, as `pmlray size --json` prints them."""
        return {**self.card, "out": str(self.out), "adapter_folder": str(self.adapter_folder)}
