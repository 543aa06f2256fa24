"""Whether MemFT helped in a search, and how sure that is, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from pmlray.study.findings.differences import LEVEL, Difference, mean_over_texts
from pmlray.study.findings.memft_pairs import MemftPair
from pmlray.study.findings.placed_law import rank_of
from pmlray.study.findings.recall_rule import n_whole
from pmlray.types import Method, Observation

# Most points that are named one by one.
MOST_NAMED = 4
NAMES: dict[Method, str] = {
    "sft": "plain fine-tuning",
    "memft_ot": "MemFT-OT",
    "memft_sw": "MemFT-SW",
    "memft_fw": "MemFT-FW",
    "memft_rd": "MemFT-RD",
}


def on_memft(pairs: Sequence[MemftPair], units: str) -> tuple[str, ...]:
    """Return a paragraph on what each method recalled beside plain fine-tuning; none without a
    pair.

    units: what is recalled whole, such as `texts`.
    """
    of_method: dict[Method, list[MemftPair]] = defaultdict(list)
    for pair in pairs:
        of_method[pair.method].append(pair)
    if not of_method:
        return ()
    plain = list({pair.sft.run_key: pair.sft for pair in pairs}.values())
    said = "; ".join(_on_method(method, own, units) for method, own in of_method.items())
    return (
        f"At {_points(pairs)}, with the same texts and steps, {NAMES['sft']} recalled"
        f" {_shares(plain, units)}; {said}. pmlray compare tells by more texts, each method at a"
        " rate of its own.",
    )


def token_gain(pairs: Sequence[MemftPair]) -> Difference:
    """Return the share of tokens that MemFT recalled less that of plain fine-tuning, with its
    interval over texts; of at least one pair."""
    of_text: dict[int, list[float]] = {}
    for pair in pairs:
        gain = pair.memft.recall.token - pair.sft.recall.token
        of_text.setdefault(pair.sequence_id, []).append(gain)
    found = mean_over_texts(of_text, shares=True)
    assert found is not None
    return found


def _on_method(method: Method, pairs: Sequence[MemftPair], units: str) -> str:
    n_texts = len({p.sequence_id for p in pairs})
    return (
        f"{NAMES[method]} {_shares([p.memft for p in pairs], units)} ({len(pairs)}"
        f" {'pair' if len(pairs) == 1 else 'pairs'} of {n_texts}"
        f" {'text' if n_texts == 1 else 'texts'}): {_verdict(token_gain(pairs))}"
    )


def _shares(runs: Sequence[Observation], units: str) -> str:
    sizes = [int(o.provenance.get("n_records", 1)) for o in runs]
    right = sum(n_whole(o.recall.exact, n) for o, n in zip(runs, sizes, strict=True))
    tokens = 100 * fmean(o.recall.token for o in runs)
    return f"{tokens:.0f} % of the tokens and {right} of {sum(sizes)} {units} whole"


def _verdict(gain: Difference) -> str:
    if gain.low is None or gain.high is None:
        if gain.n == 1:
            return "a single text does not tell whether it helps"
        alike = f"{_points_of(gain.mean)} points of tokens in each text"
        alike = "no change in any text" if gain.mean == 0 else alike
        return f"{alike}, which does not tell how others would scatter"
    interval = f"{_points_of(gain.mean)} points of tokens, {100 * LEVEL:g} % interval"
    interval += f" {_points_of(gain.low)} to {_points_of(gain.high)}"
    if gain.low > 0:
        return f"it helps there ({interval})"
    if gain.high < 0:
        return f"it harms there ({interval})"
    return f"whether it helps there is open ({interval})"


def _points_of(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _points(pairs: Sequence[MemftPair]) -> str:
    points = sorted({p.sft.point for p in pairs})
    named = dict.fromkeys(f"{rank_of(p)} with {p.seq_len} tokens" for p in points)
    return " and ".join(named) if len(named) <= MOST_NAMED else f"{len(named)} ranks and lengths"
