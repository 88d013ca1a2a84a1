# SPDX-License-Identifier: Apache-2.0
"""Chain: filters, then a weighted sum of other strategies' scores. Right when no single measure fits the traffic."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scheduler, Scoring

Spec = str | dict[str, Any]


class Filter(Struct, forbid_unknown_fields=True):
    strategy: Spec
    at_most: float


class Scorer(Struct, forbid_unknown_fields=True):
    strategy: Spec
    weight: Annotated[float, Meta(gt=0)] = 1.0


class Chain(Scoring):
    """Each scorer counts from 0 (its best instance of this moment) to its weight (its worst). A filter puts aside the
    instances with more than `at_most`, unless that leaves none."""

    name = "chain"

    def __init__(
        self,
        *,
        scorers: Annotated[list[Scorer], Meta(min_length=1)],
        filters: Sequence[Filter] = (),
        make: Callable[[str | Mapping[str, Any]], Scheduler],
    ) -> None:
        super().__init__()
        self._scorers = [(_scoring(make(one.strategy)), one.weight) for one in scorers]
        self._filters = [(_scoring(make(one.strategy)), one.at_most) for one in filters]
        self._members = [member for member, _ in (*self._filters, *self._scorers)]
        self.wants_metrics = any(getattr(member, "wants_metrics", False) for member in self._members)

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        kept = instances
        for member, at_most in self._filters:
            scores = member.scores(request, kept)
            within = [one for one, score in zip(kept, scores, strict=True) if score <= at_most]
            kept = within or kept
        chosen = super().choose(request, kept)
        if len(kept) < len(instances):
            by_id = {one.instance_id: score for one, score in zip(kept, self.last_scores, strict=True)}
            self.last_scores = [by_id.get(one.instance_id, math.inf) for one in instances]
        return chosen

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        sums = [0.0] * len(instances)
        for member, weight in self._scorers:
            scores = member.scores(request, instances)
            lowest = min(scores)
            spread = max(scores) - lowest or 1.0
            sums = [total + weight * (score - lowest) / spread for total, score in zip(sums, scores, strict=True)]
        return sums

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        for member in self._members:
            member.placed(request, instance)

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self._tell("first_byte", request, instance)

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._tell("finished", request, instance, outcome)

    def departed(self, instance_id: str) -> None:
        self._tell("departed", instance_id)

    def _tell(self, hook: str, *facts: object) -> None:
        for member in self._members:
            if tell := getattr(member, hook, None):
                tell(*facts)


def _scoring(strategy: Scheduler) -> Scoring:
    if not isinstance(strategy, Scoring):
        raise TypeError(f"{getattr(strategy, 'name', strategy)!r} has no scores to add up")
    return strategy
