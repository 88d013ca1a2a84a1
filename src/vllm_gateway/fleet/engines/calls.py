# SPDX-License-Identifier: Apache-2.0
"""The gateway's own calls to engines, over Unix sockets and ports alike; each has a connection of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
from aiohttp import hdrs

from vllm_gateway.routing import Address

FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
"""What a call may raise."""


@asynccontextmanager
async def call(
    address: Address, path: str, *, limit_s: float, method: str = hdrs.METH_GET
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The engine's reply, from where it stands: redirects are not followed. Raises FAILURES."""
    headers = {hdrs.ACCEPT_ENCODING: "identity"}
    if address.key:
        headers[hdrs.AUTHORIZATION] = f"Bearer {address.key}"
    connector = aiohttp.UnixConnector(address.path) if address.path else aiohttp.TCPConnector()
    async with (
        aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=limit_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_guarded(address)] if address.guard else None,
        ) as http,
        http.request(method, f"http://{address.authority}{path}", headers=headers, allow_redirects=False) as reply,
    ):
        yield reply


def _guarded(address: Address) -> aiohttp.TraceConfig:
    """Asks the guard before and after the connection is opened, and before anything is sent."""

    async def check(*_: SimpleNamespace | object) -> None:
        if address.guard is not None and not address.guard.holds():
            raise ConnectionRefusedError(f"it is not the engine that listens at {address}")

    config = aiohttp.TraceConfig()
    config.on_connection_create_start.append(check)
    config.on_connection_create_end.append(check)
    return config
