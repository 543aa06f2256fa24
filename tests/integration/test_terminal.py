"""`pmlray init` asks a person at a real terminal, a pseudo terminal of this machine."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import end_group, pmlray

pytestmark = pytest.mark.slow

ANSWER_SECONDS = 60.0


class Terminal:
    """A process whose input and output is a terminal, and what that shows."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self.shown, self._answered = "", 0

    def answer(self, question: str, answer: str) -> None:
        """Type once the question is there, as a person does."""
        end = time.monotonic() + ANSWER_SECONDS
        while question not in self.shown[self._answered :]:
            assert self._read(end - time.monotonic()), self.shown
        self._answered = len(self.shown)
        os.write(self._ours, answer.encode())

    def end(self) -> int:
        """Read what it still shows; its exit code."""
        while self._read(ANSWER_SECONDS):
            pass
        return self.process.wait(ANSWER_SECONDS)

    def close(self) -> None:
        os.close(self._ours)
        end_group(self.process)

    def _read(self, seconds: float) -> bool:
        """Take in what it shows next; False once it is over, or too late."""
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        try:
            new = os.read(self._ours, 4096)
        except OSError:  # Nobody writes to it any more.
            return False
        self.shown += new.decode()
        return bool(new)


def test_init_asks_and_writes_what_was_answered(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    command = [sys.executable, "-m", "pmlray", "init"]
    terminal = Terminal(command, tmp_path, PMLRAY_CACHE=cache, TERM="xterm")
    try:
        # DEL: a letter too many is taken back before Enter.
        terminal.answer("What is memorised", "sonnets\x7f\r")
        terminal.answer("'sonnet' is none of long_context, phonebook", "linear_rule\r")
        terminal.answer("Base model", "\r")
        terminal.answer("Write to [linear_rule_smollm2_135m.yaml]", "\r")
        assert terminal.end() == 0, terminal.shown
    finally:
        terminal.close()
    assert "is written; next: pmlray plan linear_rule_smollm2_135m.yaml" in terminal.shown
    assert terminal.shown.count("What is memorised") == 2
    file = tmp_path / "linear_rule_smollm2_135m.yaml"
    code, out, err = pmlray("search", str(file), "--dry-run", "--json", PMLRAY_CACHE=cache)
    assert code == 0, err
    assert json.loads(out)["search_id"].startswith("linear_rule_smollm2_135m")
