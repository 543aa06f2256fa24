"""LawSampler in a plain Optuna study: each trial is the run that tells most about the law.

    python scripts/examples/optuna_sampler.py

The experiment is yours: here a shipped table of real runs answers (SmolLM2-135M-Instruct,
PhoneBook). Any of Optuna's storages works, and workers may share a study.
"""

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed where pmlray is installed

import optuna

from pmlray import CostModel, DesignPoint, DesignSettings, DesignSpace, LawSampler

TABLE = ROOT / "searches" / "tables" / "smollm2_phonebook.csv"
CELL = ("rank", "length", "steps", "sequence", "seed")
with TABLE.open() as file:
    rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
runs = {tuple(int(row[name]) for name in CELL): row for row in rows}

# The grid, the (sequence, seed) pairs of a cell, and where the law must be known.
space = DesignSpace(
    tuple(sorted({DesignPoint(*cell[:3]) for cell in runs})),
    tuple(sorted({cell[3:] for cell in runs})),
)
settings = DesignSettings(6, validation_share=0.2, targets=(DesignPoint(32, 1280, 160),))
# What a run costs before any was measured: seconds a token of a step. Trials tell the real rate.
cost = CostModel(seconds_per_token=1e-3, prompt_tokens=16, batch_records=4)
sampler = LawSampler(space, settings, ("ceiling", "exponential_ceiling"), cost, budget=300.0)


def objective(trial: optuna.Trial) -> float:
    """One run: suggest all five parameters first, measure, say what is known, return delta_loss."""
    chosen = {
        name: trial.suggest_int(name, d.low, d.high, log=d.log)
        for name, d in sampler.distributions.items()
        if isinstance(d, optuna.distributions.IntDistribution)
    }
    names = ("lora_rank", "seq_len", "train_steps", "sequence_id", "seed")
    run = runs[tuple(chosen[name] for name in names)]
    trial.set_user_attr("base_loss", float(run["base_loss_nats"]))
    trial.set_user_attr("supervised_tokens", int(run["supervised_tokens"]))
    trial.set_user_attr("gpu_seconds", float(run["gpu_seconds"]))
    return float(run["delta_loss_nats"])


def stop_at_the_budget(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """End the study where no other run is affordable."""
    print(f"{trial.number:2d} {trial.params} {trial.value:.2f} nats; {sampler.why(trial.number)}")
    if not sampler.within_budget(study):
        study.stop()


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, n_trials=12, callbacks=[stop_at_the_budget])
spent = sum(trial.user_attrs["gpu_seconds"] for trial in study.trials)
print(f"{len(study.trials)} trials, {spent:.0f} gpu_seconds")
