# SPDX-License-Identifier: Apache-2.0
"""When a beginning that many prompts share is worth reading on one more instance: once its lack has cost as much."""

from collections import OrderedDict

_MOST = 1000  # beginnings remembered, those that cost something lately


class Regrets:
    """For each beginning, the seconds that requests have lost because it was not cached where there was less to do.

    Who rents until the rent would have paid for a purchase, and then buys, never pays more than twice of what he would
    have paid had he known the future.
    """

    def __init__(self) -> None:
        self._lost: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lost)

    def of(self, beginning: int | None) -> float:
        return 0.0 if beginning is None else self._lost.get(beginning, 0.0)

    def add(self, beginning: int, lost_s: float) -> None:
        self._lost[beginning] = self._lost.get(beginning, 0.0) + lost_s
        self._lost.move_to_end(beginning)
        if len(self._lost) > _MOST:
            self._lost.popitem(last=False)

    def settle(self, beginning: int) -> None:
        """It is read on one more instance now."""
        self._lost.pop(beginning, None)
