"""A search on your own records: the law of a file of queries and targets.

    python scripts/examples/own_records.py [FOLDER]

Writes records and a search file to FOLDER and runs it there; the same command continues. With the
tiny random model it takes a minute and says nothing about real ones: take "smollm2-135m", layer 20.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed where pmlray is installed

from pmlray import Search

# Every key: searches/README.md. `task.records` lies in the folder of the search file; a run of a
# seq_len takes so many of the first records that their targets have about so many tokens.
SEARCH = """
name: my_records
task: {kind: records, records: records.jsonl, prompt_format: plain}
model: {id: tiny-random-llama}
probe: {placement: down_proj, layer: 1}
space:
  lora_rank: [1, 2, 4, 8]
  seq_len: [16, 32, 64]
  train_steps: [60]
recipe: {learning_rate: 1e-2, batch_size: 8}
design: {n_initial: 4, pack_size: 4, targets: {lora_rank: [8], seq_len: [64]}}
budget: {gpu_seconds: 600}
sequences: [0]
"""


def main() -> None:
    """Ray starts processes that may import this file, so the work is behind a main guard."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"query": f"The code of room {n} is", "target": f" {7 * n + 1000}"} for n in range(20)]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "search.yaml").write_text(SEARCH)
    search = Search.load(folder / "search.yaml", store=folder / "store")
    print(search.plan().describe())
    found = search.run()
    print(*found.answer, sep="\n")
    law = search.law()
    print("too few points for a law" if law is None else law.headline)
    print(f"report: {found.page}")


if __name__ == "__main__":
    main()
