# SPDX-License-Identifier: Apache-2.0
"""Containers that a test starts itself: whether they run, and until they answer."""

import aiohttp
import pytest
from aiodocker.containers import DockerContainer

from tests.waiting import until


async def assert_running(container: DockerContainer) -> None:
    if not (await container.show())["State"]["Running"]:
        pytest.fail("".join(await container.log(stdout=True, stderr=True)), pytrace=False)


async def until_healthy(url: str, container: DockerContainer) -> None:
    async with aiohttp.ClientSession() as client:

        async def healthy() -> bool:
            await assert_running(container)
            try:
                async with client.get(f"{url}/health") as reply:
                    return reply.status == 200
            except aiohttp.ClientError:
                return False

        await until(healthy)
