"""Answer of a search in plain words: rank, recall, cost, and what to do next.

It is based on the runs alone and needs no law.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import scipy

from pmlray.study.findings.memft_words import on_memft
from pmlray.study.findings.placed_law import rank_of
from pmlray.study.findings.placement_words import largest_choice
from pmlray.study.findings.recall_rule import ANSWER_AND_END, n_whole, recall_rule
from pmlray.study.findings.result import SearchResult
from pmlray.types import DesignPoint, Observation

CONFIDENCE = 0.9
# Least share that is stated as a whole per cent.
LEAST_TOLD = 0.01
UNITS = {"long_context": "text", "records": "record", "phonebook": "entry", "linear_rule": "pair"}
PLURALS = {"text": "texts", "record": "records", "entry": "entries", "pair": "pairs"}


@dataclass(frozen=True, slots=True)
class Tried:
    """Recall of plain fine-tuning at one point, over all its runs.

    `n_right` of `n` texts or records are recalled word for word, with their end where one was
    trained, for `gpu_seconds` a run; `n_answered` are recalled whether or not they end there.
    `size`: of its adapter, by which those of all points compare.
    """

    point: DesignPoint
    n_right: int
    n_answered: int
    n: int
    n_runs: int
    token_recall: float
    gpu_seconds: float
    size: int

    def least_share(self, n_points: int = 1) -> float:
        """Return a lower bound, at CONFIDENCE, of the share recalled of many more such texts.

        Clopper and Pearson's limit, one-sided (DOI 10.1093/biomet/26.4.404), with Bonferroni's
        correction for the choice of this point as the best of `n_points`.
        """
        if self.n_right == 0:
            return 0.0
        error = (1 - CONFIDENCE) / n_points
        return float(scipy.stats.beta.ppf(error, self.n_right, self.n - self.n_right + 1))


def tried_points(observations: Sequence[Observation]) -> tuple[Tried, ...]:
    """Return every point that plain fine-tuning was measured at, in the order of points."""
    at: dict[DesignPoint, list[Observation]] = defaultdict(list)
    for o in observations:
        if o.method == "sft":
            at[o.point].append(o)
    return tuple(_tried(point, at[point]) for point in sorted(at))


def answer_point(tried: Sequence[Tried]) -> tuple[Tried, bool]:
    """Return the point that answers which rank recalls how much, and whether it recalled all.

    It is the smallest adapter for the longest text that was recalled whole, a point with one text
    only if none has more; else the point that came nearest.
    """
    whole = [t for t in tried if t.n_right == t.n]
    if not whole:
        return max(tried, key=lambda t: (t.n_right / t.n, t.token_recall)), False
    sure = [t for t in whole if t.n > 1] or whole
    longest = max(t.point.seq_len for t in sure)
    best = min(
        (t for t in sure if t.point.seq_len == longest),
        key=lambda t: (t.size, t.point.train_steps),
    )
    return best, True


def answer_parts(result: SearchResult) -> tuple[tuple[str, str], ...]:
    """Return the answer as (what it is about, in words): recall, how sure it is, the placement of
    several, MemFT where it was run, and what to do next."""
    tried = tried_points(result.observations)
    if not tried:
        return (("Recall", "Nothing was measured, so that nothing can be said."),)
    unit = unit_of(result)
    cost = result.observations[-1].provenance.get("gpu_seconds_unit", "device")
    ends = recall_rule(result.observations) == ANSWER_AND_END
    return (
        *_on_recall(tried, unit, cost, ends),
        *(("Placement", words) for words in largest_choice(result.choices)),
        *(("MemFT", words) for words in on_memft(result.pairs, PLURALS[unit])),
        ("Next", f"Next, which rank your own records need: {size_command(result)}"),
    )


def unit_of(result: SearchResult) -> str:
    """Return what is recalled whole, in the singular: of runs that do not tell how many records
    they hold, as in a table, all that a run memorises counts as one text."""
    told = all("n_records" in o.provenance for o in result.observations)
    return UNITS[result.spec.task.kind] if told else "text"


def size_command(result: SearchResult) -> str:
    """Return the command that sizes an adapter of the same base for records of one's own."""
    return f"pmlray size --records FILE.jsonl --model {result.spec.model.id}"


def plain_answer(result: SearchResult) -> tuple[str, ...]:
    """Return the sentences of `answer_parts`, how sure the recall is beside it."""
    (_, recall), *others = answer_parts(result)
    if others and others[0][0] == "How sure":
        recall = f"{recall} {others.pop(0)[1]}"
    return (recall, *(words for _, words in others))


def _tried(point: DesignPoint, runs: Sequence[Observation]) -> Tried:
    sizes = [int(o.provenance.get("n_records", 1)) for o in runs]
    return Tried(
        point,
        sum(n_whole(o.recall.exact, n) for o, n in zip(runs, sizes, strict=True)),
        sum(n_whole(o.recall.right_answers, n) for o, n in zip(runs, sizes, strict=True)),
        sum(sizes),
        len(runs),
        fmean(o.recall.token for o in runs),
        fmean(o.gpu_seconds for o in runs),
        # Ranks compare at one placement alone.
        point.lora_rank
        if point.placement is None
        else int(runs[0].provenance.get("adapter_params", point.lora_rank)),
    )


def _on_recall(
    tried: Sequence[Tried], unit: str, cost: str, ends: bool
) -> tuple[tuple[str, str], ...]:
    best, whole = answer_point(tried)
    if not whole:
        words = (
            f"No rank recalled everything word for word; nearest came {_at(best)} with"
            f" {best.n_right} of {best.n} {PLURALS[unit]}{_unended(best)} and"
            f" {100 * best.token_recall:.0f} % of the tokens. Larger ranks, more steps or shorter"
            " texts recall more."
        )
        return (("Recall", words),)
    least = best.least_share(len(tried))
    says = (
        f"says with {100 * CONFIDENCE:.0f} % confidence that at least {100 * least:.0f} % of many"
        " more like them would be."
        if least >= LEAST_TOLD
        else "says nothing of many more like them: repeat it with more sequences."
    )
    words = (
        f"R{_at(best)[1:]} recalled {_count(best, unit)} word for word"
        f"{' and stopped there' if ends else ''}, for about"
        f" {best.gpu_seconds:.2g} {cost}-seconds a run."
    )
    sure = f"Chosen among {len(tried)} points, that {says}"
    of_best = (best.point.placement, best.point.lora_rank)
    longest = best.point.seq_len
    longer = [t for t in tried if t.point.seq_len > longest and t.point.family[:2] == of_best]
    if longer:
        beyond = min(longer, key=lambda t: t.point.seq_len)
        sure += f" At {beyond.point.seq_len} tokens it recalled {beyond.n_right} of {beyond.n}."
    return ("Recall", words), ("How sure", sure)


def _unended(tried: Tried) -> str:
    """Return how many more are answered right without stopping there, for a sentence."""
    more = tried.n_answered - tried.n_right
    return f" ({more} more without stopping after it)" if more else ""


def _count(tried: Tried, unit: str) -> str:
    if tried.n == 1:
        return f"the one {unit} that was tried"
    return f"{tried.n_right} of {tried.n} {PLURALS[unit]}"


def _at(tried: Tried) -> str:
    point = tried.point
    return f"{rank_of(point)} with {point.seq_len} tokens and {point.train_steps} steps"
