# SPDX-License-Identifier: Apache-2.0
"""A stream of events that an engine sends and a client gets: whatever its API, it is taken event by event, and ends."""

from abc import ABC, abstractmethod

from vllm_gateway.streams.sse import EventReader, EventTooLong


class EventStream(ABC):
    __slots__ = ("_reader", "done", "failed", "refused")

    def __init__(self, max_event_bytes: int) -> None:
        self._reader = EventReader(max_event_bytes)
        self.done = False  # the client has the stream's last event
        self.failed: str | None = None  # what would have ended it without a result
        self.refused = False  # the engine's answer is an error of the client's

    @property
    def ended(self) -> bool:
        return self.done or self.failed is not None

    def feed(self, payload: bytes) -> bytes:
        """What goes on to the client. Nothing does once the stream has ended."""
        if self.ended:
            return b""
        try:
            events = self._reader.feed(payload)
        except EventTooLong:
            self.failed = "event_too_long"
            return b""
        return b"".join([self._event(event) for event in events])

    @abstractmethod
    def _event(self, event: bytes) -> bytes:
        """What the client gets of it."""
