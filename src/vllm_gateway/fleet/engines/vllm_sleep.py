# SPDX-License-Identifier: Apache-2.0
"""vLLM's sleep mode: an engine gives its GPU memory back, keeps its parameters in the machine's, and wakes in seconds.

Its routes are there in vLLM's developer mode alone (VLLM_SERVER_DEV_MODE=1).
"""

import aiohttp

from vllm_gateway.fleet.runtimes import Running

ARGUMENT = "--enable-sleep-mode"
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}
LIMIT_S = 120.0  # a hundred GiB over a slow bus

_SHOWN = 300  # characters of an engine's error


class NotMovedError(Exception):
    """The engine did not do it, or nobody knows whether it did."""


async def fall_asleep(http: aiohttp.ClientSession, running: Running) -> None:
    """Level 1: the parameters are kept, the cache is lost. Raises NotMovedError."""
    await _tell(http, running, "sleep?level=1")


async def wake_up(http: aiohttp.ClientSession, running: Running) -> None:
    """Raises NotMovedError."""
    await _tell(http, running, "wake_up")


async def is_sleeping(http: aiohttp.ClientSession, running: Running) -> bool | None:
    """None: it does not answer. An engine without the route never sleeps."""
    try:
        async with http.get(f"http://{running.address}/is_sleeping") as reply:
            if reply.status == 404:
                return False
            return bool((await reply.json())["is_sleeping"]) if reply.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        return None


async def _tell(http: aiohttp.ClientSession, running: Running, what: str) -> None:
    limit = aiohttp.ClientTimeout(total=LIMIT_S)
    try:
        async with http.post(f"http://{running.address}/{what}", timeout=limit) as reply:
            if reply.status == 200:
                return
            said = (await reply.text(errors="replace"))[:_SHOWN]
            problem = f"{reply.status} {said}".strip()
    except TimeoutError:
        problem = f"no answer for {LIMIT_S:g} s"
    except (aiohttp.ClientError, OSError) as error:
        problem = repr(error)
    raise NotMovedError(f"/{what}: {problem}")
