# SPDX-License-Identifier: Apache-2.0
"""Random: any instance, by weight. Right as a yardstick, or where several gateways must not march in step."""

from collections.abc import Sequence
from random import Random

from vllm_gateway.scheduling import InstanceView, RequestInfo


class RandomChoice:
    name = "random"

    def __init__(self, *, random: Random) -> None:
        self._random = random

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        (chosen,) = self._random.choices(instances, [instance.weight for instance in instances])
        return chosen
