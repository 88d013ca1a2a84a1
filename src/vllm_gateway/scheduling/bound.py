# SPDX-License-Identifier: Apache-2.0
"""Requests that one instance alone can serve, for it keeps what they go on from: each waits for a place there."""

from collections.abc import Iterator, Sequence

from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.types import InstanceView
from vllm_gateway.scheduling.waiting import Waiter

GONE = Refusal(
    "response_not_found",
    "The instance that keeps what the request goes on from (previous_response_id) has ended, or sleeps, and no other "
    "one has it. Send the conversation itself.",
)


class Bound:
    """In the order in which they came."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[Waiter, str] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self.waiting

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self.waiting)

    def add(self, waiter: Waiter, instance_id: str) -> None:
        self.waiting[waiter] = instance_id

    def remove(self, waiter: Waiter) -> bool:
        """Whether it was one of them."""
        return self.waiting.pop(waiter, None) is not None

    def clear(self) -> None:
        self.waiting.clear()

    def listed(self, instances: frozenset[str]) -> None:
        """Only these are there: who is bound to another one is refused."""
        for waiter in [waiter for waiter, instance_id in self.waiting.items() if instance_id not in instances]:
            del self.waiting[waiter]
            waiter.refuse(GONE)

    def next(self, views: Sequence[InstanceView]) -> tuple[Waiter, InstanceView] | None:
        """Takes out the first one whose instance is among these, and has a place."""
        by_id = {view.instance_id: view for view in views if view.in_flight < view.max_in_flight}
        for waiter, instance_id in self.waiting.items():
            if (view := by_id.get(instance_id)) is not None:
                del self.waiting[waiter]
                return waiter, view
        return None
