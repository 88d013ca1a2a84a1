# SPDX-License-Identifier: Apache-2.0
"""Text for people, on what may be a terminal: what strangers and engines have put in is shown, and does nothing."""

import sys
from functools import lru_cache
from typing import TextIO


def printable(text: str, *, lines: bool = True) -> str:
    """Control, bidirectional and other invisible characters as escapes; `lines`: but for the ends of lines.

    >>> print(printable("a\\x1b[2Jb"))
    a\\u001b[2Jb
    """
    if text.isprintable():
        return text
    return "".join([one if one.isprintable() or (lines and one == "\n") else _escape(one) for one in text])


@lru_cache(maxsize=1024)
def _escape(one: str) -> str:
    """As JSON has it."""
    units = one.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def say(text: object, file: TextIO | None = None) -> None:
    """Prints it, on standard output if nothing else is named, and at once."""
    print(printable(str(text)), file=file or sys.stdout, flush=True)
