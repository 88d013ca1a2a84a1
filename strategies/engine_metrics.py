# SPDX-License-Identifier: Apache-2.0
"""Engine metrics: by what the engines say of their load. Right when others than this gateway use them, too."""

from collections.abc import Callable, Sequence

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scoring


class _SinceReading:
    __slots__ = ("at", "requests")

    def __init__(self) -> None:
        self.at = 0.0
        self.requests = 0  # placed less finished


class EngineMetricsLoad(Scoring):
    """Requests in the engine, those that wait twice, the more the fuller its KV cache. Blind: requests in flight."""

    name = "engine_metrics"
    wants_metrics = True

    def __init__(self, *, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._since: dict[str, _SinceReading] = {}

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        now = self._clock()
        return [self._load(instance, now) / instance.weight for instance in instances]

    def _load(self, instance: InstanceView, now: float) -> float:
        metrics = instance.fresh_metrics(now)
        if metrics is None:
            return instance.in_flight
        requests = max(0, metrics.running + metrics.waiting + self._of(instance).requests)
        return (requests + metrics.waiting) * (1 + metrics.kv_usage)

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        self._of(instance).requests += 1

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._of(instance).requests -= 1

    def departed(self, instance_id: str) -> None:
        self._since.pop(instance_id, None)

    def _of(self, instance: InstanceView) -> _SinceReading:
        """What happened since the last reading: many requests come between two of them."""
        since = self._since.setdefault(instance.instance_id, _SinceReading())
        if instance.metrics and instance.metrics.at != since.at:
            since.at, since.requests = instance.metrics.at, 0
        return since
