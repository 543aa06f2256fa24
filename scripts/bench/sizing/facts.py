"""Writes invented facts as lines of {"query", "target"}, to try `pmlray size` on.

    python scripts/bench/sizing/facts.py facts.jsonl [--records 300] [--seed 0]

Phone numbers, favourite dishes and home addresses of made-up people, a third each; the same seed
writes the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.memory.names import FIRST_NAMES, LAST_NAMES

DISHES = [
    f"{how} {what} with {side}"
    for how in ("grilled", "roasted", "smoked", "braised", "pickled")
    for what in ("trout", "lamb", "pumpkin", "tofu", "duck", "aubergine")
    for side in ("lentils", "wild rice", "fennel", "sour plums", "walnuts", "red cabbage")
]
STREETS = ("Maple Street", "Harbour Road", "Mill Lane", "Station Road", "Chapel Hill", "Elm Avenue")
TOWNS = ("Oakford", "Saltmere", "Winterby", "Greyhaven", "Ashcombe", "Thornwick", "Larkfield")


def facts(n_records: int, seed: int) -> list[dict[str, str]]:
    """The first n_records facts of a seed, one a person."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(len(FIRST_NAMES) * len(LAST_NAMES))[:n_records]
    found = []
    for i, code in enumerate(people.tolist()):
        first, last = divmod(code, len(LAST_NAMES))
        name = f"{FIRST_NAMES[first]} {LAST_NAMES[last]}"
        if i % 3 == 0:
            digits = "".join(map(str, rng.integers(0, 10, 10)))
            query, target = f"The phone number of {name} is", f" {digits}"
        elif i % 3 == 1:
            query, target = f"The favourite dish of {name} is", f" {rng.choice(DISHES)}"
        else:
            house, street, town = rng.integers(1, 200), rng.choice(STREETS), rng.choice(TOWNS)
            query, target = f"The home of {name} is at", f" {house} {street}, {town}"
        found.append({"query": query, "target": target})
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    lines = [json.dumps(fact) for fact in facts(args.records, args.seed)]
    args.file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
