# SPDX-License-Identifier: Apache-2.0
"""What all pages that the gateway itself answers have in common."""

import orjson
from aiohttp import hdrs, web

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress


def only_get(request: web.BaseRequest) -> None:
    """Raises ApiError method_not_allowed."""
    if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
        raise ApiError("method_not_allowed", f"{request.path} is read with GET.")


def as_json(value: object, progress: Progress) -> web.Response:
    """`value`: of dataclasses, dictionaries, lists and numbers."""
    body = orjson.dumps(value)
    return web.Response(body=body, content_type="application/json", headers=progress.headers)
