# SPDX-License-Identifier: Apache-2.0
"""When a refused client should try again: after the start that is under way, and the queue that is before it."""

import math

SHORTEST_S = 1
LONGEST_S = 600
UNKNOWN_WAIT_S = 60.0
_LAST_SHARE = 1 / 16


class Turnover:
    """How fast places come back: from how many there are, and how long requests have kept theirs lately."""

    __slots__ = ("_kept_s", "places")

    def __init__(self) -> None:
        self.places = 0
        self._kept_s = 0.0  # a mean in which the last ones count most; 0: nothing is known

    def kept(self, seconds: float) -> None:
        """A request has ended well, and had its place for so long."""
        self._kept_s += (seconds - self._kept_s) * (_LAST_SHARE if self._kept_s else 1.0)

    def per_s(self, still_s: float) -> float:
        """0 while nothing is known. `still_s`: for so long no place has been taken or given back."""
        return self.places / max(self._kept_s, still_s) if self._kept_s else 0.0


def retry_after_s(*, start_s: float, waiting: int, served_per_s: float) -> int:
    """Whole seconds. `start_s`: until an instance is ready, 0 if one is; `served_per_s`: 0 if it is unknown.

    Before the first reply nobody knows how fast the queue will be served: during a start it counts for nothing then. A
    model that is ready and has answered nobody yet may take minutes.
    """
    queue_s = 0.0
    if served_per_s > 0:
        queue_s = waiting / served_per_s
    elif waiting and not start_s:
        queue_s = UNKNOWN_WAIT_S
    return whole_seconds(start_s + queue_s)


def whole_seconds(seconds: float) -> int:
    """As Retry-After may say it: rounded up, within bounds."""
    return math.ceil(max(SHORTEST_S, min(LONGEST_S, seconds)))
