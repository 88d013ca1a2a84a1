# SPDX-License-Identifier: Apache-2.0
"""aiohttp's low-level server, whose own refusals of what it cannot read have OpenAI's form like all others."""

from aiohttp import web

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import request_id_of


class _Connection(web.RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 400,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Always the last reply of its connection: where the next request begins is not known."""
        if request.writer.output_size > 0:
            raise ConnectionError("a reply has begun; nothing can be said after it")
        said = (message or "").partition("\n")[0].rstrip(": ") or "it is not HTTP/1.1"
        response = ApiError("bad_request", f"The request cannot be read: {said}.").response(request_id_of(None))
        response.force_close()
        return response


class AiohttpServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)
