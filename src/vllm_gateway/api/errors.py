# SPDX-License-Identifier: Apache-2.0
"""Every error that clients get from the gateway itself: a stable code and a message, in its API's form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from aiohttp import web

from vllm_gateway.api.forms import Form, Said, body_of, last_event
from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.retry_after import whole_seconds


@dataclass(frozen=True, slots=True)
class Kind:
    status: int
    type: str
    anthropic_type: str = ""
    """Empty: the same."""


class Asker(Protocol):
    """Whose request it is that an error answers."""

    request_id: str

    @property
    def form(self) -> Form: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Of all replies to it."""


KINDS = {
    "invalid_api_key": Kind(401, "authentication_error"),
    "role_not_allowed": Kind(403, "permission_error"),
    "host_not_allowed": Kind(403, "permission_error"),
    "origin_not_allowed": Kind(403, "permission_error"),
    "tls_required": Kind(400, "invalid_request_error"),
    "bad_request": Kind(400, "invalid_request_error"),
    "model_missing": Kind(400, "invalid_request_error"),
    "model_not_found": Kind(404, "model_not_found", "not_found_error"),
    "not_found": Kind(404, "invalid_request_error", "not_found_error"),
    "response_not_found": Kind(404, "invalid_request_error", "not_found_error"),
    "method_not_allowed": Kind(405, "invalid_request_error"),
    "body_too_large": Kind(413, "invalid_request_error", "request_too_large"),
    "body_too_complex": Kind(400, "invalid_request_error"),
    "websocket_not_carried": Kind(501, "invalid_request_error"),
    "unsupported_media_type": Kind(415, "invalid_request_error"),
    "body_timeout": Kind(408, "invalid_request_error"),
    "head_timeout": Kind(408, "invalid_request_error"),
    "head_too_large": Kind(431, "invalid_request_error"),
    "buffers_full": Kind(503, "service_unavailable", "overloaded_error"),
    "queue_full": Kind(429, "rate_limit_error"),
    "queue_timeout": Kind(503, "service_unavailable", "overloaded_error"),
    "no_room": Kind(503, "service_unavailable", "api_error"),
    "model_start_failed": Kind(503, "service_unavailable", "api_error"),
    "shortage": Kind(503, "service_unavailable", "overloaded_error"),
    "stopping": Kind(503, "service_unavailable", "overloaded_error"),
    "poison_request": Kind(422, "invalid_request_error"),
    "instance_failed": Kind(502, "upstream_error", "api_error"),
    "connect_timeout": Kind(504, "timeout_error"),
    "first_byte_timeout": Kind(504, "timeout_error"),
    "idle_timeout": Kind(504, "timeout_error"),
    "loop_detected": Kind(508, "upstream_error", "api_error"),
    "request_timeout": Kind(504, "timeout_error"),
    "stream_interrupted": Kind(502, "upstream_error", "api_error"),
    "event_too_long": Kind(502, "upstream_error", "api_error"),
    "engine_redirect": Kind(502, "upstream_error", "api_error"),
    "internal_error": Kind(500, "internal_error", "api_error"),
}


class ApiError(Exception):
    """An answer to the client. `code` is one of KINDS."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        """`allow`: the methods that there are, with 405."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = ", ".join(sorted(allow))

    @classmethod
    def of(cls, refusal: Refusal) -> "ApiError":
        return cls(refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def body(self, asker: Asker) -> bytes:
        return body_of(self._said(), asker.form, asker.request_id)

    def event(self, asker: Asker, number: int) -> bytes:
        """The same for a stream that has begun: its last event, after so many."""
        return last_event(self._said(), asker.form, asker.request_id, number)

    def _said(self) -> Said:
        kind = KINDS[self.code]
        return Said(self.code, self.message, kind.type, kind.anthropic_type or kind.type, self.param)

    def headers(self, asker: Asker) -> dict[str, str]:
        """All but those that say how long the body is."""
        headers = {"Content-Type": "application/json; charset=utf-8", **asker.headers}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(whole_seconds(self.retry_after_s))
        if self.allow:
            headers["Allow"] = self.allow
        if self.status == 415:
            headers["Accept-Encoding"] = "identity"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self, asker: Asker) -> web.Response:
        """For aiohttp to send."""
        response = web.Response(status=self.status, body=self.body(asker), headers=self.headers(asker))
        if self.code in ("body_timeout", "buffers_full"):
            response.force_close()  # the rest of the request may still come
        return response

    def reply(self, asker: Asker, *, keep_alive: bool) -> bytes:
        """The same reply as bytes."""
        body = self.body(asker)
        headers = self.headers(asker)
        headers["Content-Length"] = str(len(body))
        headers["Date"] = formatdate(usegmt=True)
        headers["Server"] = "vllm-gateway"
        if not keep_alive:
            headers["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n{lines}\r\n".encode() + body
