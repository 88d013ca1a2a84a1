# SPDX-License-Identifier: Apache-2.0
"""How tests wait for what nothing tells them of: for the condition itself, with a limit."""

import asyncio
from collections.abc import Callable

LIMIT_S = 10.0
_POLL_S = 0.002


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Raises TimeoutError if it does not come true in time."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(_POLL_S)
