# SPDX-License-Identifier: Apache-2.0
"""What the front door and its connections are to each other, whoever reads them, and what bounds each of them."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from vllm_gateway.api.buffers import Buffers
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Journal
from vllm_gateway.configuration.settings import Settings

MAX_AHEAD_BYTES = 64 * 1024
"""Of requests that come before the one at hand is answered; beyond it the connection is not read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of every connection, in both lanes."""

    head_bytes: int = 64 * 1024
    head_s: float = 10.0
    """From the first byte of a head to its last one."""
    idle_s: float = 3600.0
    max_idle: int = 4096
    stall_s: float = 60.0
    """How long a request that has begun may bring not a single byte."""
    body_s: float = 300.0
    """How long a large body may take, and `stall_s` more."""
    client_s: float | None = 120.0
    """How long a client may take not a single byte of a reply."""

    @property
    def sweep_s(self) -> float:
        """How often times are looked at."""
        return max(0.01, min(5.0, self.head_s / 4, self.idle_s / 4, self.stall_s / 4))


def bounds_of(settings: Settings) -> Bounds:
    server = settings.server
    return Bounds(
        head_bytes=server.max_head_kib << 10,
        head_s=server.head_timeout_s,
        idle_s=server.idle_timeout_s,
        max_idle=server.max_idle_connections,
        body_s=server.body_timeout_s,
        client_s=settings.timeouts.client_s or None,
    )


class Guest(Protocol):
    """A connection at the door."""

    @property
    def idle_since(self) -> float | None:
        """None: something of a request has come, or is in work."""

    def check_time(self, now: float) -> None:
        """Called by the door's sweep: ends what takes too long."""

    def close_if_idle(self) -> None:
        """Nothing of a request has come, and none is expected any more."""

    def abort(self) -> None:
        """Ends it now, whatever it does."""


class Door(Protocol):
    """Who keeps the connections."""

    loop: asyncio.AbstractEventLoop
    journal: Journal
    buffers: Buffers

    @property
    def bounds(self) -> Bounds: ...

    def enter(self, guest: Guest) -> None: ...

    def leave(self, guest: Guest) -> None: ...

    def refuse(self, transport: asyncio.Transport, error: ApiError, seen: bytes) -> None:
        """Says so instead of reading on; the connection is the guest's no more. `seen`: what has come of a head."""

    def say_farewell(self, transport: asyncio.Transport) -> None:
        """The last reply has been written; the connection is the guest's no more."""
