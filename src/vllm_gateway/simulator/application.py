# SPDX-License-Identifier: Apache-2.0
"""The front door of the simulated engine: faults first, then the key, then the route; errors in vLLM's shapes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_gateway.simulator import log
from vllm_gateway.simulator.api_errors import SHUTTING_DOWN_MESSAGE, ApiError, DetailError, internal_error
from vllm_gateway.simulator.arguments import Arguments
from vllm_gateway.simulator.engine import DEAD_MESSAGE, Engine, EngineDeadError
from vllm_gateway.simulator.exchange import DEATH_S, JSON_HEADERS
from vllm_gateway.simulator.faults import Faults
from vllm_gateway.simulator.http_server import Header, Reply, Request
from vllm_gateway.simulator.replies import to_json
from vllm_gateway.simulator.settings import SimulationSettings
from vllm_gateway.simulator.startup import EngineMemory


@dataclass(slots=True)
class Context:
    """What handlers work with."""

    arguments: Arguments
    settings: SimulationSettings
    engine: Engine
    faults: Faults
    memory: EngineMemory | None = None
    asleep_mib: dict[str, int] = field(default_factory=dict)
    """What was given back to fall asleep, by part; taken again to wake up."""
    on_faults_changed: Callable[[], Awaitable[None]] | None = None
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that are kept, by their ids."""
    draining: bool = False
    """SIGTERM came: what is in flight goes on, new generations are turned away."""


_GARBLED = {"garbage": b"\x16\x03\x01 not HTTP\r\n\r\n", "cut_head": b"HTTP/1.1 200 OK\r\ncontent-ty"}

_KEPT = re.compile(r"/v1/responses/[^/]+")

RouteHandler = Callable[[Context, Request, Reply], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: RouteHandler
    generates: bool = False
    """Ends with 500 or 503 while a fault says so, or while the engine drains."""


def is_protected(path: str) -> bool:
    """vLLM asks for the key only here: /health, /metrics, /tokenize and the developer's routes are open."""
    return path.startswith("/v1/") or path == "/v1"


def pattern_of(path: str) -> str:
    """The same for the responses that are kept, whatever their ids."""
    return _KEPT.sub("/v1/responses/{response_id}", path)


class Application:
    def __init__(self, context: Context, routes: list[Route]) -> None:
        self._context = context
        self._routes: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._routes.setdefault(route.path, {})[route.method] = route
        self.in_flight = 0

    async def handle(self, request: Request, reply: Reply) -> None:
        self.in_flight += 1
        try:
            await self._handle(request, reply)
        finally:
            self.in_flight -= 1

    async def _handle(self, request: Request, reply: Reply) -> None:
        reply.extra_headers += self._headers(request)
        try:
            if not request.path.startswith("/sim/") and self._context.faults.is_set("silent"):
                await asyncio.get_running_loop().create_future()
            if not self._has_key(request):
                reply.send(401, to_json({"error": "Unauthorized"}), JSON_HEADERS[:1])
                return
            route = self._route(request)
            if route.generates:
                self._check_faults()
                self._take_poison(request)
                if self._is_garbled(reply):
                    return
            await route.handler(self._context, request, reply)
        except (ApiError, DetailError) as error:
            allow: list[Header] = []
            if isinstance(error, DetailError) and error.allow is not None:
                allow = [("allow", error.allow)]
            body = error.body
            if isinstance(error, ApiError) and request.path.startswith("/v1/messages"):
                body = error.anthropic_body
            reply.send(error.status, to_json(body), [*allow, *JSON_HEADERS])

    def _route(self, request: Request) -> Route:
        methods = self._routes.get(request.path) or self._routes.get(pattern_of(request.path))
        if methods is None:
            raise DetailError(404, "Not Found")
        route = methods.get(request.method)
        if route is None:
            raise DetailError(405, "Method Not Allowed", allow=", ".join(methods))
        return route

    def _has_key(self, request: Request) -> bool:
        own = self._context.settings.api_key
        keys = self._context.arguments.api_keys or ((own,) if own else ())
        if not keys or not is_protected(request.path) or request.method == "OPTIONS":
            return True
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in keys

    def _headers(self, request: Request) -> list[Header]:
        headers = [("x-simulated-instance", self._context.settings.name)]
        if "origin" in request.headers:
            headers.append(("access-control-allow-origin", "*"))
        if self._context.arguments.enable_request_id_headers:
            headers.insert(0, ("x-request-id", request.headers.get("x-request-id") or os.urandom(16).hex()))
        return headers

    def _check_faults(self) -> None:
        faults = self._context.faults
        if self._context.draining or faults.use("shutting_down_500"):
            raise internal_error(SHUTTING_DOWN_MESSAGE)
        if faults.use("status_500"):
            raise internal_error("Internal server error (simulated)")
        if faults.use("status_503"):
            raise ApiError(503, "Service temporarily unavailable (simulated)", kind="ServiceUnavailableError")
        if faults.is_set("health_503"):
            raise internal_error(DEAD_MESSAGE)

    def _take_poison(self, request: Request) -> None:
        faults, call_later = self._context.faults, asyncio.get_running_loop().call_later
        if b"poison" not in request.body:
            return
        if (after_s := faults.value("dies_of_poison")) is not None:
            log.error("CUDA error: an illegal memory access was encountered (simulated)")
            call_later(after_s, os._exit, 1)
        if (after_s := faults.value("core_dies_of_poison")) is not None:
            log.error("EngineCore encountered a fatal error. (simulated)")
            call_later(after_s, self._context.engine.fail, EngineDeadError())
            call_later(after_s + DEATH_S, os._exit, 1)

    def _is_garbled(self, reply: Reply) -> bool:
        for name, data in _GARBLED.items():
            if self._context.faults.use(name):
                reply.break_off(data)
                return True
        return False
