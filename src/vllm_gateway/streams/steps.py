# SPDX-License-Identifier: Apache-2.0
"""What can become of a stream whose instance failed: it is complete, another instance is asked, or it is given up."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vllm_gateway.bodies.payload import Payload


class Stream(Protocol):
    """Who follows what an instance sends."""

    @property
    def done(self) -> bool: ...

    @property
    def failed(self) -> str | None: ...

    @property
    def is_between_events(self) -> bool: ...

    def feed(self, payload: bytes) -> bytes: ...

    def feed_chunk(self, chunk: bytes) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to be generated: these events complete the stream."""

    events: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Another instance goes on: ask it this, and let `stream` follow its reply."""

    path: str
    body: Payload
    stream: Stream
    how: str = "anew"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The stream cannot be continued, for this reason."""

    why: str


Step: TypeAlias = Finish | Ask | GiveUp


class Told(Stream, Protocol):
    """One stream as the client sees it, from whichever instance its parts come."""

    @property
    def body(self) -> Payload:
        """What to ask an instance that begins."""

    @property
    def begun(self) -> bool:
        """Whether the client has seen an event."""

    @property
    def is_finished(self) -> bool:
        """Whether the reply is whole, even if the events after it are missing."""

    @property
    def refused(self) -> bool:
        """Whether the engine's answer is an error of the client's."""

    @property
    def tokens(self) -> int:
        """Tokens of the reply so far, as far as it can be told."""

    @property
    def number(self) -> int:
        """Of the client's next event, where events are numbered."""
