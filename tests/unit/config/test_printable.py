"""Text that a terminal shows and does not obey."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pmlray.api.live_progress import shown_live
from pmlray.api.status import StudyStatus
from pmlray.cli.output import PrintableFormatter, emit, tell
from pmlray.config.printable import printable

EVIL = "a\x1b]0;title\x07b\x1b[2Jc\x1b[31md\x9b1me\x1bcf\rg\x00h\x7fi\u202ej\x1b]8;;http://x\x1b\\k"


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]\x9b;0m\x07\\\n")))
def test_nothing_is_left_that_steers_and_plain_text_stays(text: str) -> None:
    found = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) <= 0x9F for c in found)
    assert printable(found) == found and found.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [(EVIL, "abcdefghijk"), ("plain é α 日本\n\ttext", "plain é α 日本\n\ttext"),
     ("[inf, inf] [0m", "[inf, inf] [0m"), ("\x1b]0;never ended\nnext", "\nnext")],
)  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_way_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"error: {EVIL}")
    emit({}, EVIL, as_json=False)
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s failed", (EVIL,), None)
    said = PrintableFormatter("%(message)s").format(record)
    status = StudyStatus(EVIL, 1, 1, 0, 1.0, 1.0, EVIL, None, running=(EVIL,), live=(EVIL,),
                         table=({"point": EVIL},))  # fmt: skip
    for terminal in (False, True):
        console = Console(stderr=True, force_terminal=terminal, color_system=None, width=200)
        with console.capture() as shown, shown_live("x", "y", console) as show:
            show(status)
        said += shown.get()
    caught = capsys.readouterr()
    everything = f"{caught.out}{caught.err}{said}"
    for part in ("\x1b]0;title", "\x1b[2J\x1b", "\x1b[31m", "\x9b", "\x1bc", "\x00", "\u202e"):
        assert part not in everything, part
    assert everything.count("abcdefghijk") >= 8
