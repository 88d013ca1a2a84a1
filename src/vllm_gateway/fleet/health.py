# SPDX-License-Identifier: Apache-2.0
"""Asks engines for their health, and whom they serve."""

import asyncio

from vllm_gateway.fleet.engines.calls import FAILURES, call
from vllm_gateway.routing import Address
from vllm_gateway.telemetry.shortage import is_shortage

POLL_S = 0.05
_LIMIT_S = 2.0


async def passes(address: Address) -> bool:
    while True:
        try:
            async with call(address, "/health", limit_s=_LIMIT_S) as reply:
                return reply.status == 200
        except FAILURES as error:
            if not is_shortage(error):
                return False
        await asyncio.sleep(POLL_S)  # it could not be asked, and that says nothing of it


async def models(address: Address) -> frozenset[str] | None:
    """The names that the engine lists; None: it does not say."""
    try:
        async with call(address, "/v1/models", limit_s=_LIMIT_S) as reply:
            if reply.status != 200:
                return None
            return frozenset(str(one["id"]) for one in (await reply.json())["data"])
    except (*FAILURES, ValueError, KeyError, TypeError):
        return None
