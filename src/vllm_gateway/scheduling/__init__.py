# SPDX-License-Identifier: Apache-2.0
"""Which ready instance takes this request: the Scheduler interface and the queue of each model."""

from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo, Scheduler

__all__ = ["InstanceView", "Outcome", "RequestInfo", "Scheduler"]
