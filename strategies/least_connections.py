# SPDX-License-Identifier: Apache-2.0
"""Least connections: the instance with the fewest requests in flight, ties in rotation. Right when costs differ."""

from collections.abc import Sequence

from vllm_gateway.scheduling import InstanceView, RequestInfo


class LeastConnections:
    name = "least_connections"

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        fewest = min(instance.in_flight for instance in instances)
        idlest = [instance for instance in instances if instance.in_flight == fewest]
        chosen = idlest[self._next % len(idlest)]
        self._next += 1
        return chosen
