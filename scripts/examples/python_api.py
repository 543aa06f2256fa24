"""pmlray in Python, cell by cell: plan a search, run it, read its law, ask it for a rank.

Runs as a script and, cell by cell (`# %%`), in VS Code, Spyder or Jupyter with Jupytext. Instead of
training, a shipped table of real runs answers (SmolLM2-135M-Instruct, PhoneBook): seconds, no GPU,
no Ray.
"""

# %% A search is a file; anything in it can be overridden.
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pmlray import Search, fit_law, read_law_data

TABLES = ROOT / "searches" / "tables"
search = Search.load(
    TABLES / "smollm2_phonebook.yaml",
    overrides=[
        "design={n_initial: 8, pack_size: 8}",
        "budget.gpu_seconds=160",
        "law.n_bootstrap=100",
    ],
    store=Path(tempfile.mkdtemp()) / "python_api",
)
plan = search.plan()
print(plan.describe())

# %% Run it. Given again, this continues; without `replay` it trains, on Ray.
found = search.run(replay=TABLES / "smollm2_phonebook.csv")
spent = found.to_json()["gpu_seconds"]["spent"]
n_runs = len(found.result.observations)
print(f"{n_runs} runs, {spent:.0f} of {plan.full_grid:.0f} gpu_seconds of a grid")

# %% The law, with what it does not know.
law = search.law()
assert law is not None
print(law.headline)
for name, (low, high) in law.intervals.items():
    print(f"{name:14} 90 % interval [{low:.3g}, {high:.3g}]")
(target,) = law.targets
print(
    f"at {target.point}: {target.delta_loss:.2f} [{target.low:.2f}, {target.high:.2f}] nats/token"
)

# %% Which rank does a wanted loss reduction need there? (by default: down to ln 2, sure recall)
(needed,) = law.sizes()
print(
    f"rank {needed.lora_rank.value:.1f} [{needed.lora_rank.low:.1f}, {needed.lora_rank.high:.1f}]"
)

# %% The observations are plain frozen objects.
worst = max(search.observations(), key=lambda o: o.final_loss)
print(f"highest loss: {worst.final_loss:.2f} nats per token at {worst.point}")
print(f"  recalled there: {worst.recall.exact:.0%} of the records")

# %% Any measurements will do: one fit of one form, without a search.
everything = fit_law(read_law_data(TABLES / "smollm2_phonebook.csv"), "ceiling")
print(f"{everything.fit.law.form} law of all {everything.fit.n_obs} runs: {everything.fit.law}")
