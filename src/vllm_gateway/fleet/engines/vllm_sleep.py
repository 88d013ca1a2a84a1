# SPDX-License-Identifier: Apache-2.0
"""vLLM's sleep mode: an engine gives its GPU memory back, keeps its parameters in the machine's, and wakes in seconds.

Its routes are there in vLLM's developer mode alone (VLLM_SERVER_DEV_MODE=1).
"""

import msgspec

from vllm_gateway.fleet.engines.calls import CallFailed, call
from vllm_gateway.routing import Address

ARGUMENT = "--enable-sleep-mode"
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}
LIMIT_S = 120.0  # a hundred GiB over a slow bus
_ASK_LIMIT_S = 2.0

_SHOWN = 300  # bytes of an engine's error


class _Sleeping(msgspec.Struct):
    is_sleeping: bool


_sleeping = msgspec.json.Decoder(_Sleeping).decode


class NotMovedError(Exception):
    """The engine did not do it, or nobody knows whether it did."""


async def fall_asleep(address: Address) -> None:
    """Level 1: the parameters are kept, the cache is lost. Raises NotMovedError."""
    await _tell(address, "/sleep?level=1")


async def wake_up(address: Address) -> None:
    """Raises NotMovedError."""
    await _tell(address, "/wake_up")


async def is_sleeping(address: Address) -> bool | None:
    """None: it does not answer. An engine without the route never sleeps."""
    try:
        answer = await call(address, "/is_sleeping", limit_s=_ASK_LIMIT_S)
        if answer.status == 404:
            return False
        return _sleeping(answer.body).is_sleeping if answer.status == 200 else None
    except (CallFailed, ValueError):
        return None


async def _tell(address: Address, what: str) -> None:
    try:
        answer = await call(address, what, limit_s=LIMIT_S, method="POST")
    except CallFailed as error:
        raise NotMovedError(f"{what}: {error}") from None
    if answer.status != 200:
        said = answer.body[:_SHOWN].decode("utf-8", "replace")
        raise NotMovedError(f"{what}: {answer.status} {said}".rstrip())
