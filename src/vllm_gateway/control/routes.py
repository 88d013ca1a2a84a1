# SPDX-License-Identifier: Apache-2.0
"""The routes of the control API: what operators and their tools may ask for, and may do."""

from collections.abc import Callable, Mapping

from aiohttp import hdrs, web

from vllm_gateway.api.answers import as_json, only, only_get
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.server import Page
from vllm_gateway.control.logs import INSTANCES, LOGS, Logs
from vllm_gateway.control.metrics import CONTENT_TYPE, MetricsPage
from vllm_gateway.control.status import DecisionsPage, Status
from vllm_gateway.telemetry.metrics import RequestMetrics

_MODELS, _RETRY = "/gateway/models/", "/retry"


class Control:
    """A dictionary look-up, as in `api`."""

    def __init__(
        self,
        *,
        names: ModelNames,
        metrics: RequestMetrics,
        status: Callable[[], Status],
        retry: Callable[[str], None],
        decisions: Callable[[str], DecisionsPage],
        logs: Logs,
    ) -> None:
        self._names = names
        self._metrics = MetricsPage(metrics, status)
        self._status = status
        self._retry = retry
        self._decisions = decisions
        self._pages: Mapping[str, Page] = {
            "/": Page("look", self._send_on_to_status),
            "/gateway/status": Page("look", self._show_status),
            "/gateway/decisions": Page("look", self._show_decisions),
            "/gateway/logs": Page("look", logs.list),
            "/metrics": Page("scrape", self._show_metrics),
        }
        self._try = Page("steer", self._try_again)
        self._log = Page("look", logs.show)

    def page(self, path: str) -> Page | None:
        """None: no such page."""
        if (page := self._pages.get(path)) is not None:
            return page
        if path.startswith(_MODELS) and path.endswith(_RETRY):
            return self._try
        if path.startswith(INSTANCES) and path.endswith(LOGS):
            return self._log
        return None

    async def _send_on_to_status(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        """For a person with a browser."""
        only_get(request)
        return web.Response(status=307, headers={hdrs.LOCATION: "/gateway/status"})

    async def _show_status(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        only_get(request)
        return as_json(self._status(), progress)

    async def _try_again(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        only(request, hdrs.METH_POST)
        name = request.rel_url.path.removeprefix(_MODELS).removesuffix(_RETRY)
        model = self._names.model_of(name)
        self._retry(model)
        return as_json(self._status().models[model], progress)

    async def _show_decisions(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        only_get(request)
        name = request.rel_url.query.get("model")
        if not name:
            raise ApiError("model_missing", f"Say which model: {request.path}?model=NAME", param="model")
        return as_json(self._decisions(self._names.model_of(name)), progress)

    async def _show_metrics(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        only_get(request)
        return web.Response(body=self._metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})
