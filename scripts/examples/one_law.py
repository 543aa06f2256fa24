"""Fit the law to measurements in a CSV, and read it.

    python scripts/examples/one_law.py [FILE.csv]

The CSV has the columns rank, length and delta_loss_nats (nats per token); steps, base_loss_nats,
sequence and seed are read where they are there. Without a file it is a shipped table of real runs.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed where pmlray is installed

from pmlray import DesignPoint, fit_law, read_law_data

table = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "searches/tables/smollm2_phonebook.csv"
points = read_law_data(table)
for note in points.notes:
    print(note)

# Asked at twice the largest rank, the largest length and the most steps that were measured.
asked = DesignPoint(
    2 * int(points.lora_rank.max()), int(points.seq_len.max()), int(points.train_steps.max())
)
law = fit_law(points, targets=[asked])

print(law.fit.status.name, law.headline)
for name, (low, high) in law.intervals.items():
    print(f"{name:16} 90 % interval [{low:.3g}, {high:.3g}]")
(there,) = law.targets
print(f"{asked}: {there.delta_loss:.2f} nats per token, one new run [{there.run_low:.2f},"
      f" {there.run_high:.2f}]")  # fmt: skip
# Which length brings the mean loss down to ln 2, where greedy decoding is sure? Empty where the
# file has no base loss.
for needed in law.sizes():
    length = needed.seq_len
    print(f"longest text at that rank: {length.value:.0f} tokens [{length.low:.0f},"
          f" {length.high:.0f}]")  # fmt: skip
