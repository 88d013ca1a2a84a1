# SPDX-License-Identifier: Apache-2.0
"""Smooth weighted round robin: in turn, the stronger more often. Right when instances differ and requests do not."""

from collections.abc import Sequence

from vllm_gateway.scheduling import InstanceView, RequestInfo


class WeightedRoundRobin:
    name = "weighted_round_robin"

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        """Everyone earns its weight; the richest serves and pays for all. So turns are spread, not bunched."""
        credit = self._credit
        for instance in instances:
            credit[instance.instance_id] = credit.get(instance.instance_id, 0.0) + instance.weight
        chosen = max(instances, key=lambda instance: credit[instance.instance_id])
        credit[chosen.instance_id] -= sum(instance.weight for instance in instances)
        return chosen

    def departed(self, instance_id: str) -> None:
        self._credit.pop(instance_id, None)
