# SPDX-License-Identifier: Apache-2.0
"""Which ready instance takes this request: the Scheduler interface and the queue of each model."""

from vllm_gateway.routing import Address, EngineMetrics
from vllm_gateway.scheduling.decisions import Decision, Decisions
from vllm_gateway.scheduling.health import Change
from vllm_gateway.scheduling.loader import StrategyError, StrategySpec, UnknownStrategy, load_strategy, make_strategy
from vllm_gateway.scheduling.placement import Placement
from vllm_gateway.scheduling.prompt import Prompt
from vllm_gateway.scheduling.quarantine import Lost
from vllm_gateway.scheduling.queue import ModelQueue
from vllm_gateway.scheduling.queues import Queues
from vllm_gateway.scheduling.scoring import Scoring
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo, Scheduler
from vllm_gateway.scheduling.waiting import NotAgain, QueueSettings, Refused

__all__ = [
    "Address",
    "Change",
    "Decision",
    "Decisions",
    "EngineMetrics",
    "InstanceView",
    "Lost",
    "ModelQueue",
    "NotAgain",
    "Outcome",
    "Placement",
    "Prompt",
    "QueueSettings",
    "Queues",
    "Refused",
    "RequestInfo",
    "Scheduler",
    "Scoring",
    "StrategyError",
    "StrategySpec",
    "UnknownStrategy",
    "load_strategy",
    "make_strategy",
]
