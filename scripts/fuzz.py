"""Fuzz every reader of files that somebody else may have written, guided by what their code covers.

    python scripts/fuzz.py [TARGET ...] [--runs 100000] [--seed 0]

Each target of tests/fuzz_targets.py is a process of its own, so that a crash ends only that one;
the input that caused it is kept, and its file printed. Needs `atheris`, of the dev extra, on Linux.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# Seconds for one input; a megabyte of YAML takes the longest.
MOST_SECONDS = 30
MOST_BYTES = 2048


def fuzz(name: str, runs: int, seed: int, folder: Path) -> None:
    """Feed a target with so many inputs, from within an empty folder; ends the process."""
    import atheris

    # A model's name in a search must not be asked for on the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["pmlray"]):
        from tests.fuzz_targets import TARGETS, seeds

    from pmlray.errors import PmlrayError

    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir()
    work.mkdir()
    for i, content in enumerate(seeds(name)):
        (corpus / f"{i:03d}").write_bytes(content)

    def one(content: bytes) -> None:
        try:
            TARGETS[name](content, work)
        except PmlrayError:
            return

    options = [
        f"-runs={runs}",
        f"-seed={seed + 1}",
        f"-max_len={MOST_BYTES}",
        f"-timeout={MOST_SECONDS}",
        f"-artifact_prefix={folder}/crash-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Run the targets one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        fuzz(options.targets[0], options.runs, options.seed, options.folder)
    from tests.fuzz_targets import TARGETS

    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = 0
    for name in options.targets or TARGETS:
        folder = tempfile.mkdtemp(prefix=f"pmlray-fuzz-{name}-")
        command = [sys.executable, __file__, name, "--folder", folder, "--runs", str(options.runs),
                   "--seed", str(options.seed)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        figures = dict(re.findall(r"stat::(\w+):\s*(\d+)", done.stderr))
        n, a_second = figures.get("number_of_executed_units"), figures.get("average_exec_per_sec")
        verdict = "no crash" if done.returncode == 0 else "CRASHED"
        print(f"{name:16} {n} inputs, {a_second} a second: {verdict}", flush=True)
        if done.returncode == 0:
            shutil.rmtree(folder)
        else:
            failed += 1
            print((done.stdout + done.stderr)[-3000:], flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
