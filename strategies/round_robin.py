# SPDX-License-Identifier: Apache-2.0
"""Round robin: each ready instance in turn. The default. Right when requests cost about the same."""

from collections.abc import Sequence

from vllm_gateway.scheduling import InstanceView, RequestInfo


class RoundRobin:
    name = "round_robin"

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        chosen = instances[self._next % len(instances)]
        self._next += 1
        return chosen
