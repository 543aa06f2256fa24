"""Runs with tokens, for the tests of recall."""

from __future__ import annotations

from collections.abc import Sequence

from pmlray.types import DesignPoint, Observation, Recall


def made_run(
    key: str,
    final_loss: float,
    wrong: Sequence[int],
    tokens: int,
    n_records: int,
    base_loss: float,
    p: Sequence[float] | None = None,
) -> Observation:
    """A run of equally long records; p of each token, 0.3 where wrong and 0.9 elsewhere unless
    given."""
    bad = set(wrong)
    length = tokens // n_records
    firsts = [
        next((i for i in range(length) if record * length + i in bad), length)
        for record in range(n_records)
    ]
    given = [0.3 if i in bad else 0.9 for i in range(tokens)] if p is None else list(p)
    index = int("".join(c for c in key if c.isdigit()))
    return Observation(
        run_key=key,
        # Ranks and lengths enough that some lie beyond others.
        point=DesignPoint(2 ** (index % 4), tokens, 100),
        task="long_context" if n_records == 1 else "phonebook",
        method="sft",
        seed=0,
        sequence_id=index % 3,
        phase="law",
        round=0,
        place=0,
        supervised_tokens=tokens,
        base_loss=base_loss,
        final_loss=final_loss,
        recall=Recall(
            token=1.0 - len(bad) / tokens,
            prefix=sum(firsts) / tokens,
            exact=sum(first == length for first in firsts) / n_records,
            n_stubborn=sum(x <= 0.5 for x in given),
        ),
        curve=((0, base_loss), (100, final_loss)),
        token_p=tuple(given),
        wrong_tokens=tuple(sorted(bad)),
        generated_match=None,
        gpu_seconds=1.0,
        charged_steps=100.0,
        tokens_per_second=1.0,
        peak_memory_bytes=0,
        provenance={"n_records": n_records},
    )
