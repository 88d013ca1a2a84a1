# SPDX-License-Identifier: Apache-2.0
"""The records of why requests went where they went."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_gateway.scheduling.types import InstanceView, RequestInfo


@dataclass(frozen=True, slots=True)
class Decision:
    """`scores`: of each instance that had a free place, by its name; the lowest was to be taken."""

    at: float  # Unix time
    request_id: str
    instance: str
    reason: str
    scores: dict[str, float]
    in_flight: dict[str, int]  # before this request


class Decisions:
    """The latest of one model."""

    def __init__(self, keep: int, log_every: int, log: Callable[[Decision], None]) -> None:
        self._kept: deque[Decision] = deque(maxlen=keep)
        self._log_every = log_every
        self._log = log
        self._count = 0

    def add(
        self,
        request: RequestInfo,
        chosen: InstanceView,
        reason: str,
        instances: Sequence[InstanceView],
        scores: Sequence[float],
    ) -> None:
        by_name = {one.name: score for one, score in zip(instances, scores, strict=True)}
        in_flight = {one.name: one.in_flight for one in instances}
        decision = Decision(time.time(), request.request_id, chosen.name, reason, by_name, in_flight)
        self._kept.append(decision)
        self._count += 1
        if self._log_every and self._count % self._log_every == 0:
            self._log(decision)

    def latest(self) -> list[Decision]:
        """The newest first."""
        return list(reversed(self._kept))
