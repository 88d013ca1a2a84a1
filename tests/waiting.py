# SPDX-License-Identifier: Apache-2.0
"""How tests wait for what nothing tells them of: for the condition itself, with a limit."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from yarl import URL

LIMIT_S = 60.0
"""Tells what hangs from a machine that is slow; nothing is to be as fast as that."""
_LOOK_S = 0.002
_ASK_S = 0.02  # where another process has to be asked; one that takes long is left alone for as long


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """`condition` may be asynchronous. Raises TimeoutError if it does not come true in time."""
    async with asyncio.timeout(limit_s):
        while True:
            found, pause_s = condition(), _LOOK_S
            if isinstance(found, Awaitable):
                began = time.monotonic()
                found = await found
                pause_s = max(_ASK_S, time.monotonic() - began)
            if found:
                return
            await asyncio.sleep(pause_s)


async def until_refused(url: str) -> None:
    """Whoever listened there takes no connection any more."""
    address = URL(url)

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # it was about to be accepted
            return False
        writer.close()
        return False

    await until(refused)
