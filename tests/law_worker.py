"""A worker of a shared study, as a process of its own: python -m tests.law_worker URL STUDY N.

It says "ready" and begins when a line comes in; with N = 0 it asks for one run, says its number,
and never finishes it.
"""

from __future__ import annotations

import sys
import time

import optuna

from tests.unit.backends.optuna.test_sampler import objective, sampler


def main(url: str, name: str, n_trials: int) -> None:
    """Load the study, wait for the start, and work."""
    law_sampler = sampler(1e9)
    study = optuna.load_study(study_name=name, storage=url, sampler=law_sampler)
    _say("ready")
    sys.stdin.readline()
    if n_trials:
        study.optimize(objective, n_trials=n_trials)
        return
    trial = study.ask(fixed_distributions=law_sampler.distributions)
    _say(str(trial.number))
    # The test kills this process while its trial runs; it must not outlive a test that does not.
    time.sleep(300)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
