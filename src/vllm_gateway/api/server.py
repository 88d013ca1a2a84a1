# SPDX-License-Identifier: Apache-2.0
"""The routes: what each path of the gateway answers."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson
from aiohttp import hdrs, web

from vllm_gateway.api.body import read_body, wanted
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.metrics import CONTENT_TYPE, MetricsPage
from vllm_gateway.api.status import Status
from vllm_gateway.relay import ClientGone, Relay, UpstreamFailed
from vllm_gateway.routing import Demand
from vllm_gateway.scheduling import InstanceView, ModelQueue, Outcome, Queues, Refused, RequestInfo
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.metrics import RequestMetrics

ATTEMPTS = 2  # the first try, and one on another instance
_MAX_ID = 128


@dataclass(slots=True)
class Progress:
    """What the access line says of a request."""

    request_id: str
    began: float
    model: str | None = None
    instance: str | None = None
    stream: bool = False
    queue_s: float = 0.0
    attempts: int = 0
    first_byte_s: float | None = None
    bytes_out: int = 0
    outcome: str = "ok"


class Api:
    """One handler for aiohttp's low-level server: a dictionary look-up instead of a router."""

    def __init__(
        self,
        *,
        names: Mapping[str, str],
        queues: Queues,
        relay: Relay,
        demand: Demand,
        status: Callable[[], Status],
        api_keys: tuple[str, ...],
        max_body: int,
        emit: Callable[..., None],
    ) -> None:
        self._names = names  # every name and alias -> model
        self._queues = queues
        self._relay = relay
        self._demand = demand
        self._status = status
        self._keys = [f"Bearer {key}".encode() for key in api_keys]
        self._max_body = max_body
        self._emit: Callable[..., None] = emit
        self._requests = RequestMetrics()
        self._metrics = MetricsPage(self._requests, status)
        self._created = int(time.time())
        self.stopping = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if 0 < len(given) <= _MAX_ID and given.isprintable() else uuid.uuid4().hex
        progress = Progress(request_id, asyncio.get_running_loop().time())
        status = 499  # the client left: nobody reads it
        try:
            response = await self._answer(request, progress)
            status = response.status
        except ApiError as error:
            progress.outcome, status = error.code, error.status
            response = error.response(request_id)
        except ClientGone:
            progress.outcome = "client_gone"
            response = web.Response(status=status)
        except asyncio.CancelledError:
            progress.outcome = "client_gone"
            raise
        except Exception as error:
            self._emit(events.UNHANDLED_ERROR, error=repr(error), where="api")
            failed = ApiError("internal_error", "The gateway failed; its log says why.")
            progress.outcome, status = failed.code, failed.status
            response = failed.response(request_id)
        finally:
            self._finish(request, progress, status)
        return response

    async def _answer(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path == "/health":
            return _json({"status": "ok"}, progress)
        self._authenticate(request)
        if path == "/gateway/status":
            return _json(self._status(), progress)
        if path == "/metrics":
            return web.Response(body=self._metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})
        if path == "/v1/models":
            models = [self._model_object(name) for name in sorted(set(self._names.values()))]
            return _json({"object": "list", "data": models}, progress)
        if path.startswith("/v1/models/"):
            name = request.rel_url.path.removeprefix("/v1/models/")
            return _json(self._model_object(self._model_of(name)), progress)
        if not path.startswith("/v1/") or "/.." in request.rel_url.path:
            raise ApiError("not_found", f"No route {path}. Try /v1/models, /gateway/status or /health.")
        return await self._serve(request, progress)

    async def _serve(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        if self.stopping:
            raise ApiError("stopping", "The gateway is shutting down. Try again.", retry_after_s=1.0)
        body = await read_body(request, self._max_body)
        if request.method != hdrs.METH_POST and not body:
            raise ApiError("model_missing", f"{request.method} {request.path} carries no model.", param="model")
        found = wanted(body, request.headers.get(hdrs.CONTENT_TYPE, ""))
        assert found.model
        progress.model = self._model_of(found.model)
        progress.stream = bool(found.stream)
        info = RequestInfo(progress.request_id, progress.model, request.path, progress.stream, body)
        return await self._carry(request, info, progress)

    async def _carry(self, request: web.BaseRequest, info: RequestInfo, progress: Progress) -> web.StreamResponse:
        queue = self._queues.of(info.model)
        loop = asyncio.get_running_loop()
        while True:
            waits_since = loop.time()
            try:
                instance = await queue.acquire(info)
            except Refused as refused:
                raise ApiError.of(refused.refusal) from None
            finally:
                progress.queue_s += loop.time() - waits_since
            progress.attempts += 1
            progress.instance = instance.name
            try:
                return await self._try(request, info, instance, queue, progress)
            except UpstreamFailed as failed:
                self._demand.suspect(instance.instance_id, failed.reason)
                if progress.attempts >= ATTEMPTS or not failed.retryable:
                    text = f"The instance that had the request failed before it answered ({failed.reason}). Try again."
                    raise ApiError("instance_failed", text, retry_after_s=1.0) from None

    async def _try(
        self,
        request: web.BaseRequest,
        info: RequestInfo,
        instance: InstanceView,
        queue: ModelQueue,
        progress: Progress,
    ) -> web.StreamResponse:
        outcome = Outcome.CLIENT_GONE
        header = ("X-Request-Id", info.request_id)
        try:
            response = await self._relay.carry(
                request,
                instance.host,
                instance.port,
                info.body,
                target=request.raw_path,
                extra_request_headers=[header],
                extra_reply_headers=[header],
            )
            carried = response.outcome
            progress.first_byte_s, progress.bytes_out = carried.first_byte_s, carried.bytes_sent
            if carried.broken:
                gone = carried.broken.startswith("client")
                outcome, progress.outcome = (Outcome.CLIENT_GONE if gone else Outcome.BROKEN), carried.broken
            elif carried.status >= 500:
                outcome = Outcome.SERVER_ERROR
            else:
                outcome = Outcome.CLIENT_ERROR if carried.status >= 400 else Outcome.OK
        except UpstreamFailed:
            outcome = Outcome.UNREACHABLE
            raise
        except ValueError as error:
            outcome = Outcome.CLIENT_ERROR
            raise ApiError("bad_request", f"The request cannot be passed on: {error}") from None
        finally:
            queue.release(instance, info, outcome)
        return response

    def _authenticate(self, request: web.BaseRequest) -> None:
        if not self._keys:
            return
        given = request.headers.get(hdrs.AUTHORIZATION, "").encode()
        if not any(hmac.compare_digest(given, key) for key in self._keys):
            raise ApiError("invalid_api_key", "Send one of the gateway's keys: 'Authorization: Bearer <key>'.")

    def _model_of(self, name: str) -> str:
        model = self._names.get(name)
        if model is None:
            there = ", ".join(sorted(set(self._names.values()))) or "none"
            text = f"No model named {name!r}. This gateway serves: {there}."
            raise ApiError("model_not_found", text, param="model")
        return model

    def _model_object(self, model: str) -> dict[str, object]:
        found = self._status().models[model]
        return {
            "id": model,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm-gateway",
            "state": found.state,
            "aliases": found.aliases,
        }

    def _finish(self, request: web.BaseRequest, progress: Progress, status: int) -> None:
        first = progress.first_byte_s
        duration_s = asyncio.get_running_loop().time() - progress.began
        self._requests.count(
            progress.model,
            status,
            progress.outcome,
            duration_s=duration_s,
            queue_s=progress.queue_s,
            first_byte_s=first,
            bytes_out=progress.bytes_out,
            attempts=progress.attempts,
        )
        self._emit(
            events.REQUEST_FINISHED,
            request_id=progress.request_id,
            method=request.method,
            path=request.path,
            model=progress.model,
            instance=progress.instance,
            status=status,
            outcome=progress.outcome,
            duration_ms=round(duration_s * 1000, 2),
            first_byte_ms=None if first is None else round(first * 1000, 2),
            queue_ms=round(progress.queue_s * 1000, 2),
            bytes_out=progress.bytes_out,
            attempts=progress.attempts,
            stream=progress.stream,
        )


def _json(value: object, progress: Progress) -> web.Response:
    body = orjson.dumps(value)
    headers = {"X-Request-Id": progress.request_id}
    return web.Response(body=body, content_type="application/json", headers=headers)
