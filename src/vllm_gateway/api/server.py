# SPDX-License-Identifier: Apache-2.0
"""The routes: what each path of the gateway answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aiohttp import hdrs, web

from vllm_gateway.api import models
from vllm_gateway.api.answers import as_json, only, only_get
from vllm_gateway.api.buffers import Buffers
from vllm_gateway.api.cors import NO_CORS, is_preflight, preflight
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.gate import Gate
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.inference import Inference
from vllm_gateway.api.journal import Journal, Progress, request_id_of
from vllm_gateway.api.kept import response_in
from vllm_gateway.api.keys import Task, offered_keys
from vllm_gateway.api.media_types import check_encoding
from vllm_gateway.api.models import Models
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.paths import CarriedPaths, origin_form
from vllm_gateway.api.receiving import Receiving
from vllm_gateway.bodies.payload import Body
from vllm_gateway.relay import AiohttpClient, CarriedResponse
from vllm_gateway.relay.loops import came_back
from vllm_gateway.routing import ModelCard
from vllm_gateway.telemetry.cut import cut

_REALTIME = "/v1/realtime"


@dataclass(frozen=True, slots=True)
class Page:
    """`answer` raises ApiError."""

    task: Task
    answer: Callable[[web.BaseRequest, Progress], Awaitable[web.StreamResponse]]


class Control(Protocol):
    """The pages for people and their tools."""

    def page(self, path: str) -> Page | None:
        """`path`: as it came. None: no such page."""


class Api:
    """One handler for aiohttp's low-level server: a dictionary look-up instead of a router."""

    def __init__(
        self,
        *,
        names: ModelNames,
        gate: Gate,
        paths: CarriedPaths,
        inference: Inference,
        journal: Journal,
        control: Control,
        problems: Callable[[], list[str]],
        state_of: Callable[[str], str],
        card_of: Callable[[str, str], ModelCard],
        max_body: int,
        bounds: Bounds,
        max_buffered: int,
    ) -> None:
        self.gate = gate
        self.paths = paths
        self.inference = inference
        self.journal = journal
        self._control = control
        self._models = Models(names, state_of, card_of)
        self._problems = problems
        self.max_body = max_body
        self.bounds = bounds
        self.buffers = Buffers(max_buffered, asyncio.get_running_loop().time)
        self.opened = asyncio.Event()
        """Set once the fleet is known: until then only /health is answered, and all else waits."""

    def configure(self, max_buffered: int) -> None:
        self.buffers.limit = max_buffered

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = request_id_of(request.headers.get("X-Request-Id"))
        client = self.gate.addresses.client_of(request.remote or "", _given(request, hdrs.X_FORWARDED_FOR))
        progress = Progress(request_id, request.method, request.path, asyncio.get_running_loop().time(), client)
        try:
            response = await self._answer(request, progress)
            progress.status = response.status
        except asyncio.CancelledError:
            progress.outcome = "client_gone"
            raise
        except Exception as error:
            failed = self.journal.failed(error, progress)
            response = failed.response(progress) if failed else web.Response(status=progress.status)
        finally:
            self.journal.finished(progress)
        return response

    async def _answer(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        if any(map(came_back, _given(request, hdrs.VIA))):
            text = "This request came back to the gateway that sent it: one of the model's `endpoints` leads back here."
            raise ApiError("loop_detected", text)
        path, query = origin_form(request)
        methods = self.paths.methods(path)
        is_inference = bool(methods) or path.startswith("/v1/")
        judged = self.gate.judge(*(b", ".join(_given(request, name)) for name in (hdrs.HOST, hdrs.ORIGIN)))
        judged.check(for_clients=is_inference)
        if is_inference:
            progress.cors = judged.cors
            if is_preflight(request):
                return self._preflight(request, progress)
        if path == "/health":
            only_get(request)
            problems = self._problems()
            return as_json({"status": "degraded", "problems": problems} if problems else {"status": "ok"}, progress)
        await self.opened.wait()
        page = self._control.page(request.rel_url.raw_path)
        task: Task = page.task if page else "infer" if is_inference else "nothing"
        offered = offered_keys(_given(request, hdrs.AUTHORIZATION), _given(request, "X-Api-Key"))
        caller = self.gate.caller(offered, progress.client, task)
        if path == models.PATH or path.startswith(f"{models.PATH}/"):
            only_get(request)
            return self._models.answer(request, progress)
        if page is not None:
            return await page.answer(request, progress)
        if not methods:
            text = "Clients' base URL ends in /v1. For operators: /gateway/status, /metrics, /health."
            raise ApiError("not_found", f"No route {cut(path)}. {text}")
        only(request, *sorted(methods))
        progress.path = path
        return await self._infer(request, path + query, caller, progress)

    @staticmethod
    def _preflight(request: web.BaseRequest, progress: Progress) -> web.Response:
        """Raises ApiError."""
        if progress.cors is NO_CORS:
            raise ApiError("origin_not_allowed", "The page's site is not in server.allowed_origins.")
        return preflight(request, progress.headers)

    async def _infer(
        self, request: web.BaseRequest, target: str, caller: str, progress: Progress
    ) -> web.StreamResponse:
        self.inference.check_open()
        check_encoding(_given(request, hdrs.CONTENT_ENCODING))
        received = Receiving(request, self.buffers, limit=self.max_body, bounds=self.bounds)
        body = await received.read()
        try:
            return await self._serve(request, target, body, caller, progress)
        finally:
            received.give()

    async def _serve(
        self, request: web.BaseRequest, target: str, body: Body, caller: str, progress: Progress
    ) -> web.StreamResponse:
        client = AiohttpClient(request, target)
        if response_in(progress.path) is not None:
            carried = await self.inference.ask(client, body, caller, progress)
            return CarriedResponse(request, carried, partial(self.inference.settle, client, carried))
        if request.method != hdrs.METH_POST and not body:
            if progress.path == _REALTIME or request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
                text = "WebSockets, and the realtime API with them, are not carried: the gateway speaks HTTP/1.1 alone."
                raise ApiError("websocket_not_carried", text)
            text = f"{request.method} {progress.path} names no model: it has no body."
            raise ApiError("model_missing", text, param="model")
        carried = await self.inference.serve(client, body, caller, progress)
        return CarriedResponse(request, carried, partial(self.inference.settle, client, carried))


def _given(request: web.BaseRequest, name: str) -> list[bytes]:
    """All values that came under that name."""
    return [value.encode("utf-8", "surrogateescape") for value in request.headers.getall(name, ())]
