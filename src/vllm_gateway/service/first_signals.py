# SPDX-License-Identifier: Apache-2.0
"""What signals do until the gateway hears them itself: there is nothing to be cut short, and a reload can wait."""

import os
import signal
from types import FrameType

_EXIT = 0  # as after every end that was asked for
_hung_up = False


def hear() -> None:
    """SIGTERM and Ctrl-C end the process at once and quietly, in the middle of an import, too. SIGHUP is remembered."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, _remember)


def about_to_read() -> None:
    """The configuration: who has asked for that until now will be content."""
    global _hung_up  # noqa: PLW0603 - as signals are the process's own
    _hung_up = False


def hung_up() -> bool:
    """Whether a reload was asked for since."""
    return _hung_up


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_EXIT)


def _remember(number: int, frame: FrameType | None) -> None:
    global _hung_up  # noqa: PLW0603 - likewise
    _hung_up = True
