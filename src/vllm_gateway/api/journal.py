# SPDX-License-Identifier: Apache-2.0
"""What is kept of each request once it is over: its line in the log, and its part in the counters."""

import asyncio
import itertools
import secrets
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from vllm_gateway.api.cors import NO_CORS, Cors
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.forms import Form, form_of, id_headers
from vllm_gateway.relay import Carried, ClientGone
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.cut import cut
from vllm_gateway.telemetry.log import timestamp
from vllm_gateway.telemetry.metrics import RequestMetrics

_MAX_ID = 128
_OURS = secrets.token_hex(10)
_numbers = itertools.count(1)
LIMITS = frozenset({"connect_timeout", "first_byte_timeout", "idle_timeout", "request_timeout", "client_stalled"})
"""The ways in which a part of a request can take too long."""


def request_id_of(given: str | None) -> str:
    """The client's own X-Request-Id if it is a sound one, else a new one: this process's mark, and a number."""
    return given if given and len(given) <= _MAX_ID and given.isprintable() else f"{_OURS}{next(_numbers):012x}"


@dataclass(slots=True)
class Progress:
    """What the journal says of a request; filled in on its way."""

    request_id: str
    method: str
    path: str
    began: float
    client: str = ""  # its address; empty where there is none, as behind a Unix socket
    cors: Cors = NO_CORS
    model: str | None = None
    instance: str | None = None
    stream: bool = False
    queue_s: float = 0.0
    attempts: int = 0
    continued: int = 0  # times that another instance went on with a stream
    limits: list[str] = field(default_factory=list)  # that were reached
    first_byte_s: float | None = None
    bytes_out: int = 0
    status: int = 499  # until it is answered: the client left, nobody reads it
    outcome: str = "ok"

    @property
    def headers(self) -> dict[str, str]:
        """Of all replies to it that the gateway makes itself."""
        return {**dict(id_headers(self.path, self.request_id)), **self.cors.headers}

    @property
    def form(self) -> Form:
        """Of the errors that its client expects."""
        return form_of(self.path)

    def show(self, carried: Carried) -> None:
        """The client has got so far."""
        self.status = carried.status
        self.first_byte_s = self.first_byte_s or carried.first_byte_s or None
        self.bytes_out = carried.bytes_sent
        self.outcome = carried.broken or "ok"

    def limit_reached(self, reason: str) -> None:
        if reason in LIMITS:
            self.limits.append(reason)


class AccessLine(msgspec.Struct):
    """The line of events.REQUEST_FINISHED, in the order in which it is read."""

    timestamp: str
    level: str
    event: str
    request_id: str
    method: str
    path: str
    client: str | None
    model: str | None
    instance: str | None
    status: int
    outcome: str
    duration_ms: float
    first_byte_ms: float | None
    queue_ms: float
    bytes_out: int
    attempts: int
    stream: bool
    continued: int


_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Journal:
    """Every request of the gateway comes by here, at its end, once."""

    emit: Callable[..., None]
    write: Callable[[bytes], None]
    """Takes a line of the log that is built already."""
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    def failed(self, error: Exception, progress: Progress) -> ApiError | None:
        """What the client is told of `error`; None: it left before there was an answer."""
        if isinstance(error, ClientGone):
            progress.outcome = "client_gone"
            return None
        if not isinstance(error, ApiError):
            self.emit(
                events.UNHANDLED_ERROR,
                error=repr(error),
                where="api",
                traceback="".join(traceback.format_exception(error)),
                request_id=progress.request_id,
            )
            error = ApiError("internal_error", "The gateway failed; its log says why.")
        progress.outcome, progress.status = error.code, error.status
        return error

    def finished(self, progress: Progress) -> None:
        first = progress.first_byte_s
        duration_s = asyncio.get_running_loop().time() - progress.began
        self.metrics.count(
            progress.model,
            progress.status,
            progress.outcome,
            duration_s=duration_s,
            queue_s=progress.queue_s,
            first_byte_s=first,
            bytes_out=progress.bytes_out,
            attempts=progress.attempts,
        )
        if progress.limits or progress.continued:
            self.metrics.count_trouble(progress.model or "", progress.limits, progress.continued)
        line = AccessLine(
            timestamp(),
            events.REQUEST_FINISHED.level,
            events.REQUEST_FINISHED.name,
            progress.request_id,
            progress.method,
            cut(progress.path),
            progress.client or None,
            progress.model,
            progress.instance,
            progress.status,
            progress.outcome,
            round(duration_s * 1000, 2),
            None if first is None else round(first * 1000, 2),
            round(progress.queue_s * 1000, 2),
            progress.bytes_out,
            progress.attempts,
            progress.stream,
            progress.continued,
        )
        self.write(_encode(line))
