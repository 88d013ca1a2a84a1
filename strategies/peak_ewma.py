# SPDX-License-Identifier: Apache-2.0
"""Peak EWMA: time to first byte x requests in flight. Right when instances are slow at times and nobody says why."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from msgspec import Meta

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scoring

_UNKNOWN_S = 1000.0


class _Latency:
    """Rises to a peak at once, forgets it slowly."""

    __slots__ = ("at", "value")

    def __init__(self, at: float) -> None:
        self.at = at
        self.value = 0.0

    def now(self, now: float, decay_s: float) -> float:
        return self.value * math.exp((self.at - now) / decay_s)

    def observe(self, seconds: float, now: float, decay_s: float) -> None:
        kept = math.exp((self.at - now) / decay_s)
        self.value = max(seconds, self.value * kept + seconds * (1 - kept))
        self.at = now


class PeakEwma(Scoring):
    name = "peak_ewma"

    def __init__(self, *, clock: Callable[[], float], decay_s: Annotated[float, Meta(gt=0)] = 10.0) -> None:
        super().__init__()
        self._clock = clock
        self._decay_s = decay_s
        self._latency: dict[str, _Latency] = {}
        self._began: dict[RequestInfo, float] = {}  # those without a first byte

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        now = self._clock()
        scores = []
        for instance in instances:
            latency = self._latency.get(instance.instance_id)
            if latency is None:  # tried at once, but not with a second request before the first has answered
                scores.append(instance.in_flight * _UNKNOWN_S)
            else:
                scores.append(latency.now(now, self._decay_s) * (instance.in_flight + 1) / instance.weight)
        return scores

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        self._began[request] = self._clock()

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        if (began := self._began.pop(request, None)) is not None:
            now = self._clock()
            latency = self._latency.setdefault(instance.instance_id, _Latency(now))
            latency.observe(now - began, now, self._decay_s)

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._began.pop(request, None)

    def departed(self, instance_id: str) -> None:
        self._latency.pop(instance_id, None)
