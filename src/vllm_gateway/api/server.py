# SPDX-License-Identifier: Apache-2.0
"""The routes: what each path of the gateway answers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import orjson
from aiohttp import hdrs, web

from vllm_gateway.api.body import STALL_S, read_body
from vllm_gateway.api.cors import ANY_ORIGIN, preflight
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.inference import Inference
from vllm_gateway.api.journal import Journal, Progress, request_id_of
from vllm_gateway.api.keys import ApiKeys
from vllm_gateway.api.metrics import CONTENT_TYPE, MetricsPage
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.status import DecisionsPage, Status
from vllm_gateway.relay import AiohttpClient, CarriedResponse

_BESIDE_V1 = frozenset({"/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank", "/v2/rerank"})
"""What else of vLLM names a model in its body and changes nothing in the engine."""


class Api:
    """One handler for aiohttp's low-level server: a dictionary look-up instead of a router."""

    def __init__(
        self,
        *,
        names: ModelNames,
        keys: ApiKeys,
        inference: Inference,
        journal: Journal,
        status: Callable[[], Status],
        problems: Callable[[], list[str]],
        retry: Callable[[str], None],
        decisions: Callable[[str], DecisionsPage],
        max_body: int,
        stall_s: float = STALL_S,
    ) -> None:
        self._names = names
        self.keys = keys
        self.inference = inference
        self.journal = journal
        self._status = status
        self._problems = problems
        self._retry = retry
        self._decisions = decisions
        self.max_body = max_body
        self.stall_s = stall_s
        self.opened = asyncio.Event()
        """Set once the fleet is known: until then only /health is answered, and all else waits."""
        self._metrics = MetricsPage(journal.metrics, status)
        self._created = int(time.time())
        self._pages: Mapping[str, Callable[[web.BaseRequest, Progress], web.Response]] = {
            "/": self._send_on_to_status,
            "/gateway/status": self._show_status,
            "/gateway/decisions": self._show_decisions,
            "/metrics": self._show_metrics,
            "/v1/models": self._list_models,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = request_id_of(request.headers.get("X-Request-Id"))
        progress = Progress(request_id, request.method, request.path, asyncio.get_running_loop().time())
        try:
            response = await self._answer(request, progress)
            progress.status = response.status
        except asyncio.CancelledError:
            progress.outcome = "client_gone"
            raise
        except Exception as error:
            failed = self.journal.failed(error, progress)
            response = failed.response(request_id) if failed else web.Response(status=progress.status)
        finally:
            self.journal.finished(progress)
        return response

    async def _answer(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path == "/health":
            _only_get(request)
            problems = self._problems()
            return _json({"status": "degraded", "problems": problems} if problems else {"status": "ok"}, progress)
        is_inference = path.startswith("/v1/") or path in _BESIDE_V1
        if is_inference and (allowed := preflight(request)) is not None:
            return allowed
        await self.opened.wait()
        caller = self.keys.caller(_credentials(request), request.remote or "")
        if path in self._pages or path.startswith("/v1/models/"):
            _only_get(request)
            page = self._pages.get(path, self._one_model)
            return page(request, progress)
        if path.startswith("/gateway/models/") and path.endswith("/retry"):
            return self._try_again(request, progress)
        if not is_inference or "/.." in request.rel_url.path:
            text = f"No route {path}. Clients' base URL ends in /v1. For operators: /gateway/status, /metrics, /health."
            raise ApiError("not_found", text)
        return await self._infer(request, caller, progress)

    def _send_on_to_status(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        """For a person with a browser."""
        return web.Response(status=307, headers={hdrs.LOCATION: "/gateway/status"})

    def _show_status(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        return _json(self._status(), progress)

    def _try_again(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        if request.method != hdrs.METH_POST:
            raise ApiError("method_not_allowed", f"{request.path} takes POST.")
        name = request.rel_url.path.removeprefix("/gateway/models/").removesuffix("/retry")
        model = self._names.model_of(name)
        self._retry(model)
        return _json(self._status().models[model], progress)

    def _show_decisions(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        name = request.rel_url.query.get("model")
        if not name:
            raise ApiError("model_missing", f"Say which model: {request.path}?model=NAME", param="model")
        return _json(self._decisions(self._names.model_of(name)), progress)

    def _show_metrics(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    def _list_models(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        models = [self._model_object(name) for name in self._names.served()]
        return _json({"object": "list", "data": models}, progress)

    def _one_model(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        name = request.rel_url.path.removeprefix("/v1/models/")
        return _json(self._model_object(self._names.served_as(name)), progress)

    async def _infer(self, request: web.BaseRequest, caller: str, progress: Progress) -> web.StreamResponse:
        self.inference.check_open()
        body = await read_body(request, self.max_body, self.stall_s)
        if request.method != hdrs.METH_POST and not body:
            text = f"{request.method} {request.path} names no model. Send a POST with a JSON body that does."
            raise ApiError("model_missing", text, param="model")
        client = AiohttpClient(request)
        carried = await self.inference.serve(client, body, caller, progress)
        return CarriedResponse(request, carried, partial(self.inference.settle, client, carried))

    def _model_object(self, name: str) -> dict[str, object]:
        """Of a model, or of an adapter, whose parent is its model."""
        model = self._names.model_of(name)
        found = self._status().models[model]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm-gateway",
            "parent": None if name == model else model,
            "state": found.state,
            "aliases": found.aliases if name == model else [],
        }


def _credentials(request: web.BaseRequest) -> bytes:
    """As OpenAI's clients send a key, or as Anthropic's do."""
    key = request.headers.get("X-Api-Key")
    given = request.headers.get(hdrs.AUTHORIZATION) or (f"Bearer {key}" if key else "")
    return given.encode("utf-8", "surrogateescape")


def _only_get(request: web.BaseRequest) -> None:
    if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
        raise ApiError("method_not_allowed", f"{request.path} is read with GET.")


def _json(value: object, progress: Progress) -> web.Response:
    body = orjson.dumps(value)
    headers = {"X-Request-Id": progress.request_id, **ANY_ORIGIN}
    return web.Response(body=body, content_type="application/json", headers=headers)
