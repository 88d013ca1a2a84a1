# SPDX-License-Identifier: Apache-2.0
"""Those who wait in a queue, and what keeps them from a place."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_gateway.configuration.settings import Ejection, Retry
from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.quarantine import Lost
from vllm_gateway.scheduling.types import InstanceView, RequestInfo

NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What holds for the queue of every model."""

    size: int
    timeout_s: float
    priorities: Mapping[str, int] = field(default_factory=lambda: {NORMAL: 0})
    retry: Retry = field(default_factory=Retry)
    ejection: Ejection = field(default_factory=Ejection)


class Refused(Exception):
    """The request gets no instance. `refusal` says why and what to do."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class NotAgain(Exception):
    """Instances have failed the request, and too many have been tried again already."""


class Past(NamedTuple):
    """The instances that have failed a request, and those of them that it is never to come back to."""

    failed: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()


NO_PAST = Past()


class Waiter:
    __slots__ = ("client", "lost", "may_repeat", "past", "place", "priority", "request")

    def __init__(self, request: RequestInfo, past: Past, lost: Lost | None, priority: int) -> None:
        self.request = request
        self.past = past
        self.lost = lost  # until it is known what has become of the instance
        self.priority = priority
        self.client = request.client
        self.may_repeat = False  # on an instance that has failed it
        self.place: asyncio.Future[InstanceView] = asyncio.get_running_loop().create_future()

    @property
    def asked_s(self) -> float:
        """How long its client wants to wait at most; what is not a number counts as not given."""
        given = self.request.header("x-request-timeout")
        try:
            seconds = float(given) if given else math.inf
        except ValueError:
            return math.inf
        return seconds if seconds >= 0 else math.inf

    def refuse(self, refusal: Refusal) -> None:
        self.fail(Refused(refusal))

    def fail(self, error: Exception) -> None:
        """Unless it has its place, or has left."""
        if not self.place.done():
            self.place.set_exception(error)
