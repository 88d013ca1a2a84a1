# SPDX-License-Identifier: Apache-2.0
"""What browsers are told: whether a page of another site may read a reply. Every reply to it says the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import hdrs, web

OF_ENGINES = frozenset(
    {
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)
"""What engines say of it goes to nobody: it is the gateway that pages talk to."""


@dataclass(frozen=True, slots=True)
class Cors:
    """What goes with each reply to one site; nothing, if its pages are to read none."""

    headers: Mapping[str, str]
    lines: bytes
    """The same as they are written."""


NO_CORS = Cors({}, b"")


def cors_for(origin: str) -> Cors:
    """`*`: pages of all sites may read it."""
    headers: dict[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin}
    if origin != "*":
        headers[hdrs.VARY] = hdrs.ORIGIN
    return Cors(headers, "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode())


def is_preflight(request: web.BaseRequest) -> bool:
    """Whether a browser asks, without a key, if a page may send its request."""
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def preflight(request: web.BaseRequest, of_all_replies: Mapping[str, str]) -> web.Response:
    headers: dict[str, str] = {
        **of_all_replies,
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "*"),
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
    return web.Response(status=204, headers=headers)
