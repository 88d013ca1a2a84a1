# SPDX-License-Identifier: Apache-2.0
"""Pages of any origin may call /v1/, as with vLLM itself, which says so on its own replies; API keys keep them out."""

from collections.abc import Mapping

from aiohttp import hdrs, web

ANY_ORIGIN: Mapping[str, str] = {"Access-Control-Allow-Origin": "*"}


def preflight(request: web.BaseRequest) -> web.Response | None:
    """The answer to a browser that asks, without a key, whether a page may send its request; None: it is no such."""
    if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
        return None
    headers: dict[str, str] = {
        **ANY_ORIGIN,
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "*"),
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
    return web.Response(status=204, headers=headers)
