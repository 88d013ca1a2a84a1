# SPDX-License-Identifier: Apache-2.0
"""What all pages that the gateway itself answers have in common."""

import orjson
from aiohttp import hdrs, web

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress
from vllm_gateway.telemetry.cut import cut
from vllm_gateway.telemetry.terminal import printable

_READS = (hdrs.METH_GET, hdrs.METH_HEAD)


def only_get(request: web.BaseRequest) -> None:
    """Raises ApiError method_not_allowed."""
    only(request, *_READS)


def only(request: web.BaseRequest, *methods: str) -> None:
    """Raises ApiError method_not_allowed."""
    if request.method not in methods:
        takes = " or ".join(methods)
        text = f"{printable(cut(request.path), lines=False)} takes {takes}, not {request.method}."
        raise ApiError("method_not_allowed", text, allow=methods)


def as_json(value: object, progress: Progress) -> web.Response:
    """`value`: of dataclasses, dictionaries, lists and numbers."""
    body = orjson.dumps(value)
    return web.Response(body=body, content_type="application/json", headers=progress.headers)


def name_server(response: web.StreamResponse) -> None:
    """Else aiohttp names itself, with its version and Python's."""
    if not response.prepared:
        response.headers.setdefault(hdrs.SERVER, "vllm-gateway")
