# SPDX-License-Identifier: Apache-2.0
"""Which ready instance takes this request: the Scheduler interface and the queue of each model."""

from vllm_gateway.scheduling.loader import StrategyError, load_strategy
from vllm_gateway.scheduling.queue import ModelQueue, Refused
from vllm_gateway.scheduling.queues import Queues
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo, Scheduler

__all__ = [
    "InstanceView",
    "ModelQueue",
    "Outcome",
    "Queues",
    "Refused",
    "RequestInfo",
    "Scheduler",
    "StrategyError",
    "load_strategy",
]
