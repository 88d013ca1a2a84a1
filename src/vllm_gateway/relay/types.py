# SPDX-License-Identifier: Apache-2.0
"""The words of the relay: what it is told, the ways a request can end, and what is known about a carried reply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vllm_gateway.relay.heads import NO_HEADERS, OwnHeaders
from vllm_gateway.relay.renaming import Rename


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much. Seconds; None = no limit. The waiting times are kept by a coarse sweep, see `sweep_s`."""

    connect_s: float = 5.0
    first_byte_s: float | None = 600.0
    """From the request being sent to the reply's body: a reply that is not streamed takes as long as its generation."""
    idle_s: float | None = 120.0
    """Between two reads of a reply that has begun."""
    pool_idle_s: float = 4.0
    """How long an idle connection may be used again: uvicorn closes its side after 5 s."""
    pool_max_idle: int = 256
    """Idle connections kept per instance."""
    max_head_bytes: int = 64 * 1024
    client_buffer_bytes: int = 64 * 1024
    """The reply's bytes held for a slow client before the instance is no longer read; one read may come on top."""
    client_stall_s: float | None = 120.0
    """How long a client that is being waited for may take not a single byte."""

    @property
    def sweep_s(self) -> float:
        """How often waiting times are looked at: a limit is noticed at most two sweeps late."""
        shortest = min(s for s in (self.first_byte_s, self.idle_s, self.pool_idle_s, 2.0) if s is not None)
        return max(shortest / 4, 0.01)


HasGivenUp: TypeAlias = Callable[[int, bytes], bool]
"""Whether a reply says that the instance cannot take requests any more, by its status (from 500 on) and the first
kilobytes of its body, framing included. Such a reply does not reach the client."""


@dataclass(slots=True)
class Instructions:
    """How one request is to be carried to one instance, and its reply to the client."""

    limits: Limits
    own: OwnHeaders = NO_HEADERS
    """Ours, for the instance and for the client; they replace those of the same name."""
    deadline: float | None = None
    """A time of the loop."""
    began: Callable[[], None] | None = None
    """Called at the first byte of the body of a reply that is no error: engines send a stream's head before they have
    read the prompt."""
    watch: Callable[[bytes], None] | None = None
    """Is shown the body as it comes, framing included."""
    rename: Rename | None = None
    """How the client calls the model, if the engine calls it something else."""
    only_here: bool = False
    """No other instance can serve it: it waits on while this one is silent."""
    has_given_up: HasGivenUp | None = None
    """Who judges whether a reply is the instance's failure."""


class UpstreamFailed(Exception):
    """The instance gave no reply, and not a byte has reached the client: the request may go to another instance.

    `reason` is one of: connect_refused, connect_timeout, connect_failed, reset, closed, first_byte_timeout,
    instance_silent, instance_hung, request_timeout, bad_reply, given_up, relay_closed; shortage, which is the
    gateway's own.
    `retryable` says whether another instance may do better without the risk of doing the work twice over.
    """

    def __init__(self, reason: str, *, retryable: bool, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.retryable = retryable
        self.detail = detail


class NoStream(UpstreamFailed):
    """The instance answered with something else than a stream of events, when the client's stream had begun already."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status_{status}", retryable=status >= 500)
        self.status = status
        self.body = body


class ClientGone(Exception):
    """The client left before the reply began; the connection to the instance has been closed already."""


@dataclass(slots=True)
class Carried:
    """What became of a reply whose head has been sent to the client."""

    status: int
    bytes_sent: int
    """Head and framing included."""
    first_byte_s: float
    """From the request being sent to the reply's head."""
    complete: bool
    broken: str | None
    """Why the reply was cut: upstream_closed, upstream_reset, idle_timeout, first_byte_timeout, request_timeout,
    bad_reply, client_gone, client_stalled, cancelled, relay_closed; of a followed stream also instance_silent,
    instance_hung, stream_incomplete and what its follower says. None while it is complete."""
    keeps_client: bool
    """The client's connection can take another request."""
    self_delimiting: bool
    """Whether the client can tell a cut reply from a complete one by its framing alone."""
