# SPDX-License-Identifier: Apache-2.0
"""The last lines an engine said: what an operator needs to see when it died, in bounded memory."""

import codecs
import re
from collections import deque
from collections.abc import Sequence

from vllm_gateway.telemetry.secrets import Secrets

KEPT_LINES = 200
_LONGEST_LINE = 2000
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory")


def clean_line(line: str, secrets: Secrets) -> str:
    """The line as a terminal would show it: without colours, a progress bar in its last state, cut if it is long.

    Whatever is a secret is masked before it is cut in two.
    """
    shown = _ANSI.sub("", line.rstrip("\r\n").rpartition("\r")[2]).rstrip()
    shown = secrets.mask(shown[: 2 * _LONGEST_LINE], is_cut=len(shown) >= 2 * _LONGEST_LINE)
    return shown if len(shown) <= _LONGEST_LINE else shown[:_LONGEST_LINE] + "..."


def says_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether the engine ended for want of GPU memory, as PyTorch and CUDA word it."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


class OutputTail:
    """Takes output in pieces as they come and keeps the last lines."""

    def __init__(self, secrets: Secrets, kept_lines: int = KEPT_LINES) -> None:
        self._secrets = secrets
        self._lines: deque[str] = deque(maxlen=kept_lines)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""

    def feed(self, data: bytes) -> None:
        *complete, partial = (self._partial + self._decoder.decode(data)).split("\n")
        self._lines.extend(shown for line in complete if (shown := clean_line(line, self._secrets)))
        if len(partial) > _LONGEST_LINE:
            overwritten = partial.rfind("\r", 0, len(partial) - 1)
            partial = partial[overwritten + 1 :][: 2 * _LONGEST_LINE]
        self._partial = partial

    def lines(self, last: int = KEPT_LINES) -> tuple[str, ...]:
        """The last lines, an unfinished one included."""
        unfinished = clean_line(self._partial, self._secrets)
        everything = [*self._lines, unfinished] if unfinished else list(self._lines)
        return tuple(everything[-last:])
