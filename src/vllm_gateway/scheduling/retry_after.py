# SPDX-License-Identifier: Apache-2.0
"""When a refused client should try again: after the start that is under way, and the queue that is before it."""

import math

SHORTEST_S = 1
LONGEST_S = 600
UNKNOWN_WAIT_S = 60.0


def retry_after_s(*, start_s: float, waiting: int, served_per_s: float) -> int:
    """Whole seconds. `start_s`: until an instance is ready, 0 if one is; `served_per_s`: the recent rate, 0: unknown.

    Before the first start nobody knows how fast the queue will be served: it counts for nothing then. A model that is
    ready and has served nobody lately is stuck, or its replies take minutes.
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
