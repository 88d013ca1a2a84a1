# SPDX-License-Identifier: Apache-2.0
"""Strategies that give every instance a score: the lowest takes the request, equals in turn."""

from abc import abstractmethod
from collections.abc import Sequence

from vllm_gateway.scheduling.types import InstanceView, RequestInfo, Scheduler


class Scoring(Scheduler):
    """A strategy of which only the scores are to be written. They can be read in the decision records, and `chain`
    adds up those of several."""

    def __init__(self) -> None:
        self._turn = 0
        self.last_scores: Sequence[float] = ()

    @abstractmethod
    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        """What the request would cost on each instance, in any unit. Changes nothing."""

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        """Optional: the request goes to this instance."""

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        scores = self.last_scores = self.scores(request, instances)
        lowest = min(scores)
        best = [instance for instance, score in zip(instances, scores, strict=True) if score == lowest]
        chosen = best[self._turn % len(best)]
        self._turn += 1
        self.placed(request, chosen)
        return chosen
