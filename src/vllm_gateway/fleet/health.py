# SPDX-License-Identifier: Apache-2.0
"""Asks engines for their health, and whom they serve."""

import asyncio

import msgspec

from vllm_gateway.fleet.engines.calls import CallFailed, CannotCall, call
from vllm_gateway.routing import Address

POLL_S = 0.05
_LIMIT_S = 2.0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models).decode


async def passes(address: Address) -> bool:
    while True:
        try:
            return (await call(address, "/health", limit_s=_LIMIT_S)).status == 200
        except CannotCall:
            await asyncio.sleep(POLL_S)  # that says nothing of the engine
        except CallFailed:
            return False


async def models(address: Address) -> frozenset[str] | None:
    """The names that the engine lists; None: it does not say."""
    try:
        answer = await call(address, "/v1/models", limit_s=_LIMIT_S)
        return frozenset(one.id for one in _models(answer.body).data) if answer.status == 200 else None
    except (CallFailed, ValueError):
        return None
