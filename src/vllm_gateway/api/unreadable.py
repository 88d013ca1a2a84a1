# SPDX-License-Identifier: Apache-2.0
"""aiohttp's low-level server, where what cannot be read is refused as any other request is: its form, its log line."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Journal, Progress, request_id_of
from vllm_gateway.telemetry.cut import cut

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(web.RequestHandler):
    def __init__(self, server: web.Server, journal: Journal, **options: Any) -> None:
        super().__init__(server, **options)
        self._journal = journal

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 400,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Always the last reply of its connection: where the next request begins is not known.

        `request` only stands for what came: it has neither its method nor its path.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("a reply has begun; nothing can be said after it")
        said = (message or "").partition("\n")[0].rstrip(": ") or "it is not HTTP/1.1"
        error = ApiError("bad_request", f"The request cannot be read: {cut(said)}.")
        progress = Progress(request_id_of(None), request.method, request.path, asyncio.get_running_loop().time())
        progress.outcome, progress.status = error.code, error.status
        self._journal.finished(progress)
        response = error.response(progress.headers)
        response.force_close()
        return response


class AiohttpServer(web.Server):
    def __init__(self, handler: Handler, journal: Journal) -> None:
        super().__init__(handler, access_log=None, handler_cancellation=True, auto_decompress=False)
        self.journal = journal

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self.journal, loop=self._loop, **self._kwargs)
