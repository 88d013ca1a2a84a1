# SPDX-License-Identifier: Apache-2.0
"""Least connections: the instance with the fewest requests in flight for its weight. Right when costs differ."""

from collections.abc import Sequence

from vllm_gateway.scheduling import InstanceView, RequestInfo, Scoring


class LeastConnections(Scoring):
    name = "least_connections"

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        return [instance.in_flight / instance.weight for instance in instances]
