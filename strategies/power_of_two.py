# SPDX-License-Identifier: Apache-2.0
"""Power of two choices: two at random, the less busy of them. Right for many instances behind several gateways."""

from collections.abc import Sequence
from random import Random

from vllm_gateway.scheduling import InstanceView, RequestInfo


class PowerOfTwo:
    name = "power_of_two"

    def __init__(self, *, random: Random) -> None:
        self._random = random

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        two = self._random.sample(instances, min(2, len(instances)))
        return min(two, key=lambda instance: instance.in_flight / instance.weight)
