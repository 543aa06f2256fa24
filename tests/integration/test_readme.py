"""Every command of README.md's bash blocks is run, or it is said here why not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from pmlray.cli import app
from tests.integration.conftest import ROOT, Finished

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHARED = "/mnt/shared/pmlray"
# Run as they stand, in this order.
RUN = (
    "python scripts/bench/sizing/facts.py facts.jsonl --records 30",
    "pmlray init mine.yaml --task phonebook --model smollm2-135m --gpu-hours 0.25",
    "pmlray validate mine.yaml",
    "pmlray plan mine.yaml",
    "pmlray search mine.yaml --store runs/mine --replay searches/tables/smollm2_phonebook.csv",
    "pmlray watch runs/mine",
    "pmlray fit runs/mine --target 64,1280",
    "pmlray report runs/mine",
    "pmlray compare searches/comparisons/phonebook.yaml --dry-run",
    "pmlray report searches/smoke.yaml --from /mnt/shared/pmlray",
)
# Run with `--dry-run`, since they would take long.
DRY = (
    "pmlray submit searches/smoke.yaml --address http://127.0.0.1:8265",
    "pmlray size --records facts.jsonl --model smollm2-135m --recall 0.99 --steps 200"
    " --out runs/facts",
)
# Not run here, and why.
ELSEWHERE = {
    "scripts/quickstart": "takes minutes; its search is smoke.yaml's path on another base",
    "source .venv/bin/activate": "of a shell; scripts/setup.sh, which makes it, runs before tests",
    "pmlray search searches/smoke.yaml --store runs/smoke": "the fixture `smoke` is that search",
    "pmlray list": "test_submit.py, on a cluster of its own",
    "pmlray status": "test_submit.py",
    "pmlray logs --follow": "test_submit.py",
    "git archive --output job.zip HEAD pmlray searches": "test_submit.py, with the profiles",
    "ray job submit --working-dir job.zip -- python -m pmlray search searches/smoke.yaml":
        "test_submit.py",
    "pmlray recall --adapter runs/facts/adapter --records facts.jsonl --min 0.99":
        "test_size.py, on an adapter that it trains",
}  # fmt: skip
# Commands of searches/README.md, of cluster/README.md and of results.
BESIDE = (
    "pmlray doctor",
    "pmlray validate searches/quickstart.yaml",
    "pmlray plan searches/long_context_qwen3_8b.yaml",
    "pmlray watch runs/smoke",
    "pmlray fit runs/smoke --target 8,512",
    "pmlray report runs/smoke",
    "pmlray tokens runs/smoke",
    "pmlray search searches/tables/smollm2_phonebook.yaml --replay"
    " searches/tables/smollm2_phonebook.csv --store runs/replayed --set design.acquisition=random"
    " --set design.n_initial=8 --set design.pack_size=8 --set budget.gpu_seconds=300",
)
# What they print, among other lines.
SHOWN = {
    "pmlray validate mine.yaml": "mine.yaml is valid: mine-21b297ed, 324 possible runs",
    "pmlray plan mine.yaml": "the budget is 900 (rates are guesses until measured)",
    RUN[4]: "of 900 gpu_seconds",
    "pmlray fit runs/mine --target 64,1280": "at lora_rank=64 seq_len=1280 train_steps=160:",
    "pmlray report runs/mine": "runs/mine/report/report.html",
    RUN[8]: "compared_runs: 400",
    "pmlray plan searches/long_context_qwen3_8b.yaml": "first pack:",
    "pmlray fit runs/smoke --target 8,512": "lora_rank=8 seq_len=512",
    "pmlray report runs/smoke": "report.html",
    DRY[0]: "would go to http://127.0.0.1:8265",
    DRY[1]: "train it on all records",
}


README = (ROOT / "README.md").read_text()


def shown_commands() -> set[str]:
    text = README.replace("\\\n", " ")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    commands = [c for line in lines for c in re.sub(r"\s#.*", "", line).split(";")]
    return {" ".join(command.split()) for command in commands if command.strip()}


def test_every_command_is_accounted_for() -> None:
    known = {*RUN, *DRY, *ELSEWHERE}
    assert shown_commands() == known


def test_every_option_of_those_that_are_not_run_exists() -> None:
    group = typer.main.get_group(app)
    for line in ELSEWHERE:
        program, *arguments = shlex.split(line)
        if program == "pmlray":
            known = {option for p in group.commands[arguments[0]].params for option in p.opts}
            options = {a for a in arguments if a.startswith("--")}
            assert options <= known, line
        elif program not in ("git", "ray", "source"):
            assert os.access(ROOT / program, os.X_OK), line


@pytest.fixture(scope="module")
def clone(smoke: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone in which the smoke search was run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("searches", "cluster", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    for place in ("runs/smoke", f"shared/{smoke.found['search_id']}"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).symlink_to(smoke.store)
    return folder


@pytest.mark.parametrize("command", [*RUN, *DRY, *BESIDE])
def test_it_runs_as_it_stands(command: str, clone: Path) -> None:
    program, *arguments = shlex.split(command.replace(SHARED, str(clone / "shared")))
    start = {"pmlray": [sys.executable, "-m", "pmlray"], "python": [sys.executable]}[program]
    if command in DRY:
        # The small base may not be on this machine.
        arguments = [a.replace("smollm2-135m", "tiny-random-llama") for a in arguments]
        arguments.append("--dry-run")
    done = subprocess.run(
        [*start, *arguments],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SHOWN.get(command, "") in done.stdout


def test_a_search_is_watched_through_mlflow(smoke: Finished) -> None:
    def watch(search_id: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pmlray", "watch", search_id]
        return subprocess.run(
            [*command, "--from", smoke.found["tracking_uri"]],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    found = watch(smoke.found["search_id"])
    assert found.returncode == 0, found.stderr
    spent, law = smoke.found["gpu_seconds"]["spent"], smoke.found["law"]
    assert f"{spent:.0f} gpu_seconds spent" in found.stderr
    assert f"alpha {law['rank_exponent']:.3f}" in found.stderr
    assert "the search has ended: FINISHED" in found.stderr
    assert "knows no search other-id" in watch("other-id").stderr


def test_its_python_prints_what_it_says(clone: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=clone, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    assert first in README and second.startswith("14 runs measured; ")


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 200 and len(README.encode()) <= 12_000
