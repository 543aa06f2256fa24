"""Which rank do these records need? Measures the law on them, trains that adapter and checks it.

    python scripts/examples/one_sizing.py [FOLDER]

Results go to FOLDER, where the same command continues. With the tiny random model it takes a minute
and says nothing about real ones: take "smollm2-135m" (`pmlray models pull smollm2-135m`), a Hugging
Face id or a local folder, and your own file.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed where pmlray is installed

from pmlray import size

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())


def main() -> None:
    """Ray starts processes that may import this file, so the work is behind a main guard."""
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "records.jsonl"
    rows = [{"query": f"The code of room {n} is", "target": f" {7 * n + 1000}"} for n in range(8)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = size(
        records, "tiny-random-llama", recall=0.75, steps=200, max_rank=32,
        out=folder / "out", say=print,
    )  # fmt: skip
    sized = found.card["sized"]
    print(f"rank {found.lora_rank} recalls {found.decoded.n_right} of 8 records")
    print(f"chosen before training: rank {sized['lora_rank']}, by {sized['basis']}")
    print(f"adapter, card and the records not recalled: {found.adapter_folder}")


if __name__ == "__main__":
    main()
