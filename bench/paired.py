# SPDX-License-Identifier: Apache-2.0
"""What a few paired ratios say: their median, an interval that holds its true value, and a verdict against a limit."""

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True, slots=True)
class Interval:
    """`confidence` is what the interval has, at least what was asked for."""

    low: float
    median: float
    high: float
    confidence: float


class Verdict(enum.Enum):
    HOLDS = "holds"
    DEARER = "dearer"
    UNDECIDED = "undecided: run more pairs"


def least_pairs(confidence: float = 0.95) -> int:
    """Fewer than these have no such interval: six for 95 %."""
    pairs = 1
    while 1 - 0.5 ** (pairs - 1) < confidence:
        pairs += 1
    return pairs


def median_interval(ratios: Sequence[float], confidence: float = 0.95) -> Interval:
    """The sign test's interval for the median: it asks nothing of the distribution but independent pairs.

    Each ratio lies below the true median with probability one half, so how many of them do is binomial. The interval
    reaches from the k-th smallest to the k-th largest ratio, with the largest k that has the confidence: the 4th of 15,
    the 10th of 30.
    """
    count = len(ratios)
    if count < least_pairs(confidence):
        raise ValueError(f"{count} pairs are too few for an interval of {confidence:.0%}")
    rank, outside = 0, 0.0  # outside: the probability that fewer than `rank` ratios lie on either side of the median
    while (more := outside + 2 * comb(count, rank) / 2**count) <= 1 - confidence:
        rank, outside = rank + 1, more
    ordered = sorted(ratios)
    return Interval(ordered[rank - 1], statistics.median(ordered), ordered[-rank], 1 - outside)


def judge(interval: Interval, limit: float) -> Verdict:
    """Holds: the interval lies wholly below the limit. Dearer: wholly at or above it."""
    if interval.high < limit:
        return Verdict.HOLDS
    return Verdict.DEARER if interval.low >= limit else Verdict.UNDECIDED
