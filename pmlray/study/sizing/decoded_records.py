"""Records with what an adapter answered to each, by greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pmlray.memory import Query, query_text


@dataclass(frozen=True, slots=True)
class DecodedRecords:
    """Greedy answers to every (query, target), each until it ended or was cut off.

    `answered`: whether the answer begins with the target; `ended`: whether it is the target and
    ends there; `end`: whether a record counts as recalled only where its answer ends.

    Example:
        >>> pairs = (("Room 1:", " 1007"), ("Room 2:", " 1014"))
        >>> found = DecodedRecords(pairs, (" 1007", " 1017"), (True, False), (True, False))
        >>> found.n_right, found.exact_recall, found.missed()
        (1, 0.5, [{'query': 'Room 2:', 'target': ' 1014', 'answer': ' 1017'}])
    """

    pairs: tuple[tuple[Query, str], ...]
    answers: tuple[str, ...]
    answered: tuple[bool, ...]
    ended: tuple[bool, ...]
    end: bool = True

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each record is recalled word for word, and ends there if `end` asks for it."""
        return self.ended if self.end else self.answered

    @property
    def n_right(self) -> int:
        """Records recalled word for word."""
        return sum(self.right)

    @property
    def n_answered(self) -> int:
        """Records whose answer begins with the target, whether or not it ends there."""
        return sum(self.answered)

    @property
    def n_ended(self) -> int:
        """Records whose answer is the target and ends there."""
        return sum(self.ended)

    def counts(self) -> dict[str, Any]:
        """Return the numbers of records by what their answers are, and the share recalled."""
        return {
            "n_records": len(self.pairs),
            "n_answered": self.n_answered,
            "n_ended": self.n_ended,
            "n_recalled": self.n_right,
            "exact_recall": self.exact_recall,
            "end": self.end,
        }

    @property
    def exact_recall(self) -> float:
        """Share of the records recalled word for word."""
        return self.n_right / len(self.right)

    def missed(self) -> list[dict[str, str]]:
        """Return the records not recalled, each with what was decoded instead."""
        return [
            {"query": query_text(query), "target": target, "answer": answer}
            for (query, target), answer, right in zip(
                self.pairs, self.answers, self.right, strict=True
            )
            if not right
        ]
