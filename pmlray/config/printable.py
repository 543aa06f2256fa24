"""Text for a terminal: that of a shared store may hold whatever somebody has written there."""

from __future__ import annotations

import re

# Whole sequences first, so that none of their letters is left: titles and links (OSC, DCS and
# their like), then colours and movements (CSI), then the short ones.
_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
# All but tab and line feed; and what turns the direction of the text around it.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text without what would make a terminal do anything but show it.

    Example:
        >>> printable("a \\x1b[31mred\\x1b[0m word")
        'a red word'
    """
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))
