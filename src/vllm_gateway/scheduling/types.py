# SPDX-License-Identifier: Apache-2.0
"""The public types of the Scheduler interface: all that a strategy sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(slots=True)
class InstanceView:
    """A ready instance below its limit. Strategies read it, and never change it."""

    instance_id: str
    name: str
    model: str
    host: str
    port: int
    max_in_flight: int
    weight: float = 1.0
    in_flight: int = 0
    total: int = 0
    failures: int = 0
    last_used: float | None = None


@dataclass(slots=True)
class RequestInfo:
    """One request: what a strategy may decide by."""

    request_id: str
    model: str
    path: str
    stream: bool
    body: bytes
    raw_headers: Sequence[tuple[bytes, bytes]] = ()
    client: str = ""
    """Who asks: a digest of the API key where keys are set, else the address that the connection comes from."""

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, in any case; None if there is none."""
        wanted = name.lower().encode("latin-1")
        for raw_name, value in self.raw_headers:
            if len(raw_name) == len(wanted) and raw_name.lower() == wanted:
                return value.decode("utf-8", "surrogateescape")
        return None


class Outcome(Enum):
    OK = "ok"
    CLIENT_ERROR = "client_error"  # 4xx from the engine
    SERVER_ERROR = "server_error"  # 5xx from the engine
    UNREACHABLE = "unreachable"  # no reply began
    BROKEN = "broken"  # the reply was cut
    CLIENT_GONE = "client_gone"


class Scheduler(Protocol):
    """Chooses the instance for each request of ONE model. Called on the event loop: no I/O, no await.

    A strategy may also have `finished(request, instance, outcome) -> None`, called once for each request it placed.
    """

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        """`instances` is never empty, holds ready instances below their limit, in a stable order."""
