# SPDX-License-Identifier: Apache-2.0
"""Asks the strategy, tells it what became of its choices, and stands in for it when it fails."""

from collections.abc import Callable, Sequence

from vllm_gateway.scheduling.decisions import Decisions
from vllm_gateway.scheduling.slow_start import spare_newcomers
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo, Scheduler


class Placement:
    """The strategy of one model, as the queue sees it: never raises, and chooses what it was given."""

    def __init__(
        self,
        strategy: Scheduler,
        *,
        failed: Callable[[Exception], None],
        clock: Callable[[], float],
        slow_start_s: float = 0.0,
        decisions: Decisions | None = None,
    ) -> None:
        self.decisions = decisions
        self.wants_metrics = bool(getattr(strategy, "wants_metrics", False))
        self._strategy = strategy
        self._first_byte: Callable[..., None] | None = getattr(strategy, "first_byte", None)
        self._finished: Callable[..., None] | None = getattr(strategy, "finished", None)
        self._departed: Callable[..., None] | None = getattr(strategy, "departed", None)
        self._failed = failed
        self._clock = clock
        self._slow_start_s = slow_start_s
        self._one_started_at = 0.0  # before that all are new, and from `_all_started_at` on nobody is
        self._all_started_at = 0.0
        self._has_scores = decisions is not None and hasattr(strategy, "last_scores")
        self._turn = 0  # of the fallback

    @property
    def wants_first_byte(self) -> bool:
        return self._first_byte is not None

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        if self._slow_start_s and self._one_started_at <= (now := self._clock()) < self._all_started_at:
            instances = spare_newcomers(instances, now, self._slow_start_s)
        try:
            chosen = self._strategy.choose(request, instances)
            if chosen not in instances:
                raise LookupError(f"chose {chosen!r}, which it was not given")
            if self._has_scores:
                self._record(request, chosen, instances)
            return chosen
        except Exception as error:
            self._failed(error)
            self._turn += 1
            return instances[self._turn % len(instances)]

    def listed(self, instances: Sequence[InstanceView]) -> None:
        """These are in the routing table now."""
        since = [one.ready_since for one in instances] or [0.0]
        self._one_started_at, self._all_started_at = (at + self._slow_start_s for at in (min(since), max(since)))

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self._tell(self._first_byte, request, instance)

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._tell(self._finished, request, instance, outcome)

    def departed(self, instance_id: str) -> None:
        self._tell(self._departed, instance_id)

    def _tell(self, hook: Callable[..., None] | None, *facts: object) -> None:
        if hook is not None:
            try:
                hook(*facts)
            except Exception as error:
                self._failed(error)

    def _record(self, request: RequestInfo, chosen: InstanceView, instances: Sequence[InstanceView]) -> None:
        assert self.decisions is not None
        scores: Sequence[float] = getattr(self._strategy, "last_scores", ())
        if len(scores) == len(instances):
            reason = getattr(self._strategy, "reason", None)
            self.decisions.add(request, chosen, reason() if reason else "the lowest score", instances, scores)
